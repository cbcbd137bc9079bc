"""Build, look at and release the site: `python tools/site.py COMMAND`.

build            the site in _build/html, warnings are errors
wheel            dist/lmsurvey_code-*.whl, the same bytes everywhere
shot PAGE WIDTH OUT.png [--dark]   a picture of a whole page of the built site at a true viewport width
address [PAGE]   the public address of the site, or of a page, or with `wheel` of the published wheel
addresses        add the pages and heading anchors of the built site to tests/site/addresses.txt
mathjax          remake book/_extra/mathjax from the npm package
constraints      write the versions of this environment to constraints.txt
release          check, tag, and say what to push
publish FOLDER   put the built site and dist/*.whl into the folder of everything published so far

Standard library and what Jupyter Book brings; Chromium and websocket-client for `shot` alone.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
ADDRESSES = ROOT / "tests" / "site" / "addresses.txt"


# Addresses: _config.yml is the only file that names them.


def config() -> dict:
    """The content of _config.yml."""
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def version() -> str:
    """The version of lmsurvey_code, read without importing it."""
    source = (ROOT / "lmsurvey_code" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE).group(1)


def site_address() -> str:
    """The public address of the newest release, without a slash at its end."""
    return config()["html"]["baseurl"].rstrip("/")


def repository_address() -> str:
    """The public address of the repository, without a slash at its end."""
    return config()["repository"]["url"].rstrip("/")


def page_address(name: str) -> str:
    """The public address of a page, such as `counting`."""
    return f"{site_address()}/{name.removesuffix('.html')}.html"


def colab_address(name: str) -> str:
    """The address that opens chapter `name` on Colab."""
    repository = repository_address().removeprefix("https://github.com/")
    branch, folder = config()["repository"]["branch"], config()["repository"]["path_to_book"]
    return f"https://colab.research.google.com/github/{repository}/blob/{branch}/{folder}/{name}.ipynb"


def wheel_address() -> str:
    """Where `publish.yml` puts the wheel of this version, for good."""
    return f"{site_address()}/v{version()}/lmsurvey_code-{version()}-py3-none-any.whl"


# Build


def pages_in_toc() -> list[str]:
    """The pages that _toc.yml lists, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


def build() -> None:
    """Run Jupyter Book over book/, with the two files at the root, and stop at any warning."""
    # Sphinx reads a changed text again, but does not notice all that these files decide, and it leaves the pages of
    # removed chapters behind. So a change in them starts from nothing.
    folders = [ROOT / "book" / "_static", ROOT / "book" / "_extra"]
    copied = sorted(path for folder in folders for path in folder.rglob("*"))
    whole = [ROOT / "_config.yml", ROOT / "_toc.yml", *copied, Path(__file__)]
    key = hashlib.sha256(b"\0".join(p.read_bytes() for p in whole if p.is_file())).hexdigest()
    stamp = SITE / ".key"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != key:
        shutil.rmtree(ROOT / "_build", ignore_errors=True)
    stamp.unlink(missing_ok=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "book", "--path-output", "."]
    command += ["--config", ROOT / "_config.yml", "--toc", ROOT / "_toc.yml", "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode:
        # Sphinx forgets the warnings of a page that it has read once, so the next run must read all pages again.
        output = done.stdout + done.stderr
        if "WARNING:" in output:  # then the traceback that follows them is only Jupyter Book giving up
            output = output.split("Traceback (most recent call last)")[0]
        print(output, file=sys.stderr)
        sys.exit("the site has warnings or errors (above), and each of them must be repaired")
    stamp.write_text(key, encoding="utf-8")
    print(f"The book is built. Open {(SITE / 'index.html').as_uri()}\nor run `make serve`.")


def wheel() -> Path:
    """Build the wheel; two builds of the same files are the same bytes."""
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1577836800"}
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    (path,) = out.glob("*.whl")
    print(f"{path.relative_to(ROOT)} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return path


# MathJax is committed, so that the site builds without npm and asks no third party for anything.

MATHJAX = "mathjax@3.2.2"
MATHJAX_SHA256 = "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09"
MATHJAX_FILES = [
    "LICENSE",
    "es5/startup.js",
    "es5/core.js",
    "es5/input/tex-base.js",
    "es5/input/tex/extensions/ams.js",
    "es5/input/tex/extensions/newcommand.js",
    "es5/input/tex/extensions/boldsymbol.js",
    "es5/output/chtml.js",
    "es5/output/chtml/fonts/tex.js",
    "es5/a11y/assistive-mml.js",
]


def mathjax() -> None:
    """Replace book/_extra/mathjax by the parts of the npm package that the book uses."""
    target = ROOT / "book" / "_extra" / "mathjax"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", MATHJAX], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != MATHJAX_SHA256:
            sys.exit(f"{MATHJAX}: SHA-256 {found}, expected {MATHJAX_SHA256}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        package = Path(folder) / "package"
        fonts = sorted(p.relative_to(package) for p in package.glob("es5/output/chtml/fonts/woff-v2/*.woff"))
        shutil.rmtree(target, ignore_errors=True)
        for name in [*MATHJAX_FILES, *fonts]:
            to = target / str(name).removeprefix("es5/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / name, to)


# The list of released addresses


class Anchors(HTMLParser):
    """Collects the ids of sections (headings and explicit targets) of one page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open_sections = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section" and dict(attrs).get("id"):
            self.ids.append(dict(attrs)["id"])


def addresses() -> None:
    """Add every page and heading anchor of the built site to the list; nothing is ever taken out."""
    known = ADDRESSES.read_text(encoding="utf-8").split() if ADDRESSES.exists() else []
    found = set(known)
    for name in pages_in_toc():
        page = SITE / f"{name}.html"
        found |= {page.name, *(f"{page.name}#{i}" for i in Anchors(page.read_text(encoding="utf-8")).ids)}
    ADDRESSES.write_text("".join(f"{line}\n" for line in sorted(found)), encoding="utf-8")
    print(f"{ADDRESSES.relative_to(ROOT)}: {len(found) - len(set(known))} new, {len(found)} in all")


# Pictures


def shot(page: str, width: int, out: str, dark: bool = False) -> None:
    """Write a PNG of the whole of `page` (of the built site) as a screen of `width` CSS pixels shows it."""
    sys.path.insert(0, str(ROOT))
    from tools.browser import Browser, serve

    with serve(SITE) as address, Browser() as browser:
        browser.open(f"{address}/{page.removesuffix('.html')}.html", width=width, theme="dark" if dark else "light")
        Path(out).write_bytes(browser.picture())


# Release


def git(*arguments: str) -> str:
    """Output of a git command in the repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def set_branch(name: str) -> None:
    """Make the Colab, edit and download links of _config.yml point at the branch or tag `name`."""
    path = ROOT / "_config.yml"
    text, n = re.subn(r"^(  branch: )\S+", rf"\g<1>{name}", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if n != 1:
        sys.exit("_config.yml: expected exactly one line `  branch: ...`")
    path.write_text(text, encoding="utf-8")


def release() -> None:
    """Tag the version. The tag holds a commit whose links point at itself; the branch then goes back to main."""
    tag = f"v{version()}"
    if git("status", "--porcelain"):
        sys.exit("release: commit or remove your changes first (git status)")
    if tag in git("tag", "--list").split():
        sys.exit(f"release: {tag} exists; raise __version__ in lmsurvey_code/__init__.py")
    if f"## {version()}" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        sys.exit(f"release: CHANGELOG.md has no section `## {version()}`; list the changed numbers there")
    known = ADDRESSES.read_text(encoding="utf-8")
    addresses()
    if ADDRESSES.read_text(encoding="utf-8") != known:
        sys.exit(f"release: {ADDRESSES.relative_to(ROOT)} has grown; look at it, commit it, and run this again")
    branch = config()["repository"]["branch"]
    for name, message in [(tag, f"Release {version()}"), (branch, f"Links point at {branch} again")]:
        set_branch(name)
        git("commit", "--all", "--message", message)
        if name == tag:
            git("tag", "--annotate", tag, "--message", message)
    print(f"Tagged {tag}. Publish it with: git push origin HEAD {tag}")


def publish(folder: str) -> None:
    """The newest release at the root of `folder`, and every release, with its wheel, for good under /vX.Y.Z/."""
    target, own = Path(folder).resolve(), f"v{version()}"
    for path in target.iterdir():
        if not re.fullmatch(r"v\d+\..*|\.git|CNAME", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(target / own, ignore_errors=True)
    leave_out = shutil.ignore_patterns(".key", ".buildinfo", ".doctrees")
    for to in (target, target / own):
        shutil.copytree(SITE, to, ignore=leave_out, dirs_exist_ok=True)
    for path in (ROOT / "dist").glob("*.whl"):
        shutil.copy(path, target / own)
    (target / ".nojekyll").touch()  # else GitHub Pages leaves out the folders whose names begin with an underscore


def constraints() -> None:
    """Write the versions of this environment, without local suffixes and files, to constraints.txt."""
    done = subprocess.run([sys.executable, "-m", "pip", "freeze"], check=True, capture_output=True, text=True)
    lines = [line.split("+")[0] for line in done.stdout.splitlines() if re.fullmatch(r"[\w.-]+==\S+", line)]
    head = "# The exact versions that `make` and environment.yml use. Made by `make constraints`."
    (ROOT / "constraints.txt").write_text("\n".join([head, *lines, ""]), encoding="utf-8")


def address(what: str = "") -> None:
    """Print the public address of the site, of its wheel, or of a page."""
    print(wheel_address() if what == "wheel" else page_address(what) if what else site_address())


COMMANDS = {f.__name__: f for f in (build, wheel, mathjax, addresses, release, publish, constraints, address)}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or [""]
    if name == "shot" and len(arguments) in (3, 4):
        shot(arguments[0], int(arguments[1]), arguments[2], dark="--dark" in arguments)
    elif name in COMMANDS:
        COMMANDS[name](*arguments)
    else:
        sys.exit(__doc__)
