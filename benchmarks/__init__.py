"""This book's code beside the field's tools: `make bench` runs all, `make bench NAME=ngram` one file of this folder."""
