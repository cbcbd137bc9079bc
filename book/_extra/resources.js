// The interactive chart of the chapter *Resources of LLMs*. Only that page loads it. It reads the table of models that
// the notebook prints below the chart, so no number stands here; without it the table and the figures are still there.
(() => {
  const table = document.querySelector('table.lm-models')
  if (!table || document.querySelector('.lm-chart')) return

  // Rows: cells by the key of their column; what looks like a number becomes one.
  const keys = [...table.tHead.rows[0].cells].map(cell => cell.dataset.key)
  const number = text => text === '' ? NaN : +text.replaceAll(',', '')
  const rows = [...table.tBodies[0].rows].map(tr => {
    const row = Object.fromEntries(keys.map((key, i) => [key, tr.cells[i].textContent.trim()]))
    const [year, month] = row.released.split('-').map(Number)
    row.url = tr.querySelector('a').href
    return {...row, year, time: year + (month - 0.5) / 12, total: number(row.size), active: number(row.active), seen: number(row.tokens)}
  })
  const years = [...new Set(rows.map(row => row.year))].sort()

  // Elements
  const SVG = 'http://www.w3.org/2000/svg'
  const add = (parent, name, attributes = {}, text) => {
    const e = parent.namespaceURI === SVG || name === 'svg' ? document.createElementNS(SVG, name) : document.createElement(name)
    for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value)
    if (text !== undefined) e.textContent = text
    parent.append(e)
    return e
  }
  add(document.head, 'style', {}, `
    .lm-chart { margin: 1em 0; --open: #0072B2; --closed: #B34700; --line: #767676 }
    html[data-theme=dark] .lm-chart { --open: #56B4E9; --closed: #F0A030; --line: #9A9A9A }
    .lm-chart fieldset { border: 0; margin: 0 0 .3em; padding: 0; display: flex; flex-wrap: wrap; gap: .1em 1em; align-items: center }
    .lm-chart legend { float: left; padding: 0; font-weight: 600; width: auto; font-size: 1em; margin: 0 }
    .lm-chart label { display: inline-flex; gap: .35em; align-items: center; min-height: 2em; margin: 0 }
    .lm-chart select { color: inherit; background: transparent; border: 1px solid var(--line); border-radius: 3px; padding: .1em .3em }
    .lm-chart option { color: #000; background: #fff }
    .lm-chart svg { display: block; width: 100%; touch-action: pan-y; font-size: 12px; overflow: hidden }
    .lm-chart text { fill: currentColor } .lm-chart .grid { stroke: var(--line); stroke-opacity: .3 }
    .lm-chart .law { stroke: currentColor; stroke-width: 1.5 } .lm-chart .budget { stroke: var(--line); stroke-dasharray: 2 4 }
    .lm-chart .open { fill: var(--open); stroke: var(--open) } .lm-chart .closed { fill: var(--closed); stroke: var(--closed) }
    .lm-chart .survey { fill: none } .lm-chart .mark { stroke-width: 1.8; cursor: pointer }
    .lm-chart .mark:focus { outline: none } .lm-chart .ring { fill: none; stroke: currentColor; stroke-width: 2 }
    .lm-card { border: 1px solid var(--line); border-radius: 4px; padding: .5em .8em; min-height: 7.5em; overflow-wrap: anywhere }
    .lm-card p { margin: 0 }`)
  const chart = document.createElement('section')
  chart.className = 'lm-chart'
  chart.setAttribute('aria-label', 'Interactive chart of the models')
  table.closest('details').before(chart)

  // Controls: their state is read from them when something changes.
  const group = name => {
    const set = add(chart, 'fieldset')
    add(set, 'legend', {}, name)
    return set
  }
  const choice = (parent, type, name, value, text, checked = true, sign) => {
    const label = add(parent, 'label')
    const input = add(label, 'input', {type, name: `lm-${name}`, value})
    input.checked = checked
    if (sign) add(label, 'span', {style: `color: var(--${value})`, 'aria-hidden': true}, sign)
    label.append(text)
    return input
  }
  const view = group('Size against')
  choice(view, 'radio', 'view', 'tokens', 'tokens seen')
  choice(view, 'radio', 'view', 'time', 'date', false)
  const perToken = choice(view, 'checkbox', 'active', '1', 'of mixtures, count what one token uses')
  const access = group('Weights')
  choice(access, 'checkbox', 'access', 'open', 'open', true, '●')
  choice(access, 'checkbox', 'access', 'closed', 'closed', true, '■')
  const kind = group('Made by')
  for (const value of ['company', 'research', 'mixed']) choice(kind, 'checkbox', 'kind', value, value)
  const span = group('Released')
  const [from, to] = ['from', 'to'].map((text, i) => {
    const label = add(span, 'label', {}, text)
    const select = add(label, 'select', {name: `lm-${text}`})
    for (const year of years) add(select, 'option', {value: year}, year)
    select.value = i ? years.at(-1) : years[0]
    return select
  })
  const ticked = set => new Set([...set.querySelectorAll('input:checked')].map(input => input.value))

  const svg = add(chart, 'svg', {role: 'group', 'aria-label': 'Each mark is a model; the arrow keys move between them'})
  const status = add(chart, 'p', {'aria-live': 'polite', class: 'lm-status'})
  const card = add(chart, 'div', {class: 'lm-card', 'aria-live': 'polite'})
  const hint = () => {
    card.replaceChildren()
    add(card, 'p', {}, 'Point at a mark or tap it, or go to the chart with the Tab key and use the arrow keys: its row appears here, with its source.')
  }
  hint()

  const short = x => x >= 1000 ? `${+(x / 1000).toPrecision(3)} trillion` : `${+x.toPrecision(3)} billion`
  const usedBy = row => row.active || row.total
  let points = [], chosen = null, ring

  function show(row, focus) {
    chosen = row
    card.replaceChildren()
    add(card, 'p', {}, `${row.name}`).style.fontWeight = 600
    add(card, 'p', {}, `${row.organization} (${row.kind}), ${row.released}, weights ${row.access}`)
    const facts = [row.total ? `${short(row.total)} parameters` : 'size not found']
    if (row.active) facts.push(`${short(row.active)} of them per token`)
    facts.push(row.seen ? `${short(row.seen)} tokens` : 'tokens not found')
    if (row.ratio) facts.push(`${row.ratio} tokens per parameter`)
    add(card, 'p', {}, facts.join(', '))
    if (row.hardware) add(card, 'p', {}, `Hardware: ${row.hardware}`)
    if (row.note) add(card, 'p', {}, row.note)
    const source = add(card, 'p', {}, row.says.includes('survey') ? `Numbers of the survey: ${row.says.replace('survey: ', '')}. ` : '')
    add(source, 'a', {href: row.url}, `Source: ${new URL(row.url).hostname}`)
    source.append(`, ${table.tHead.rows[0].cells[keys.length - 1].textContent}`)
    const point = points.find(p => p.row === row)
    for (const p of points) p.mark.setAttribute('tabindex', p === point ? 0 : -1)
    ring?.remove()
    if (!point) return
    ring = add(svg, 'circle', {class: 'ring', cx: point.x, cy: point.y, r: 9})
    if (focus) point.mark.focus()
  }

  function draw() {
    const width = Math.max(chart.clientWidth, 280), height = width < 520 ? 380 : 440
    const box = {left: 46, right: 12, top: 14, bottom: 40}
    const byTime = view.querySelector('input:checked').value === 'time'
    const shown = {access: ticked(access), kind: ticked(kind)}
    const size = row => perToken.checked ? usedBy(row) : row.total
    // Against tokens, a mixture of which nobody says how much a token uses has no place, nor has a model tuned from another.
    const placed = row => size(row) && (byTime || (row.seen && !row.base && (row.active || row.architecture !== 'mixture')))
    const kept = rows.filter(row => shown.access.has(row.access) && shown.kind.has(row.kind) && row.year >= +from.value && row.year <= +to.value)
    const drawn = kept.filter(placed)
    status.textContent = `${drawn.length} of ${rows.length} models shown; ${kept.length - drawn.length} more fit the choice, but lack a number. Empty marks: a number of the survey.`

    const [y0, y1] = [8e7, 4e12], [x0, x1] = byTime ? [years[0], years.at(-1) + 1] : [3e10, 1e14]
    const part = (v, low, high, log) => log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low)
    const X = v => box.left + (width - box.left - box.right) * part(v, x0, x1, !byTime)
    const Y = v => height - box.bottom - (height - box.top - box.bottom) * part(v, y0, y1, true)
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`)
    svg.style.height = `${height}px`
    svg.replaceChildren()
    add(add(svg, 'clipPath', {id: 'lm-frame'}), 'rect', {x: box.left, y: box.top, width: width - box.left - box.right, height: height - box.top - box.bottom})
    const line = (name, a, b, c, d) => add(svg, 'line', {class: name, x1: X(a), y1: Y(b), x2: X(c), y2: Y(d), 'clip-path': 'url(#lm-frame)'})
    const words = (x, y, text, anchor = 'middle') => add(svg, 'text', {x, y, 'text-anchor': anchor}, text)
    for (const [v, text] of [[1e8, '0.1 B'], [1e9, '1 B'], [1e10, '10 B'], [1e11, '100 B'], [1e12, '1 T']]) {
      line('grid', x0, v, x1, v)
      words(box.left - 5, Y(v) + 4, text, 'end')
    }
    const ticks = byTime ? years.map(y => [y, width < 520 ? `’${y % 100}` : y]) : [[1e11, '0.1 T'], [1e12, '1 T'], [1e13, '10 T'], [1e14, '']]
    for (const [v, text] of ticks) {
      line('grid', v, y0, v, y1)
      words(byTime ? X(v + 0.5) : X(v), height - box.bottom + 16, text)
    }
    words(box.left + (width - box.left - box.right) / 2, height - 6, byTime ? 'released' : 'tokens D; dotted: equal cost 6ND in operations')
    words(2, 11, `parameters N${perToken.checked ? ', per token' : ''}`, 'start')
    if (!byTime) {
      line('law', x0, x0 / 20, x1, x1 / 20)
      words(X(8e12), Y(8e12 / 20) - 8, 'D = 20 N', 'end')
      for (let budget = 1e22; budget < 1e27; budget *= 10) {
        line('budget', x0, budget / 6 / x0, x1, budget / 6 / x1)
        const right = budget / 6 / x1, power = String(Math.round(Math.log10(budget))).replace(/./g, d => '⁰¹²³⁴⁵⁶⁷⁸⁹'[d])
        if (right > 1.5 * y0) words(width - box.right - 3, Y(right) - 5, `10${power}`, 'end')
        else words(X(budget / 6 / y0) - 6, height - box.bottom - 6, `10${power}`, 'end')
      }
    }
    points = drawn.map(row => ({row, x: X(byTime ? row.time : row.seen * 1e9), y: Y(size(row) * 1e9)})).sort((a, b) => a.x - b.x || a.y - b.y)
    for (const p of points) {
      const name = `mark ${p.row.access} ${p.row.says.includes('survey') ? 'survey' : ''}`
      const shape = p.row.access === 'open' ? ['circle', {cx: p.x, cy: p.y, r: 4.5}] : ['rect', {x: p.x - 4, y: p.y - 4, width: 8, height: 8}]
      p.mark = add(svg, shape[0], {...shape[1], class: name, tabindex: -1, role: 'button', 'aria-label': `${p.row.name}, ${p.row.released}`})
    }
    // Names, where few marks are left: each on the first side on which it is free of the frame, of marks and of names.
    const taken = points.map(p => [p.x - 5, p.y - 5, p.x + 5, p.y + 5])
    for (const p of points.length <= 20 ? points : []) {
      const long = 6.4 * p.row.name.length
      for (const [x, y, anchor] of [[8, 4, 'start'], [-8, 4, 'end'], [0, -9, 'middle'], [0, 17, 'middle']]) {
        const left = p.x + x - {start: 0, middle: long / 2, end: long}[anchor], spot = [left, p.y + y - 11, left + long, p.y + y + 2]
        const free = taken.every(t => t[2] <= spot[0] || spot[2] <= t[0] || t[3] <= spot[1] || spot[3] <= t[1])
        if (!free || left < box.left || left + long > width - box.right) continue
        taken.push(spot)
        words(p.x + x, p.y + y, p.row.name, anchor)
        break
      }
    }
    points[0]?.mark.setAttribute('tabindex', 0)
    if (chosen && points.some(p => p.row === chosen)) show(chosen)
    else if (chosen) {
      chosen = null
      hint()
    }
  }

  const nearest = event => {
    const area = svg.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top
    const far = p => Math.hypot(p.x - x, p.y - y)
    const best = points.reduce((a, b) => a && far(a) <= far(b) ? a : b, null)
    return best && far(best) < 22 ? best : null
  }
  const point = event => { const p = nearest(event); if (p && p.row !== chosen) show(p.row) }
  svg.addEventListener('pointermove', point)
  svg.addEventListener('click', point)
  // On the section, because an svg that listens for keys or focus is one more stop of the Tab key.
  chart.addEventListener('focusin', event => { const p = points.find(q => q.mark === event.target); if (p && p.row !== chosen) show(p.row) })
  chart.addEventListener('keydown', event => {
    const i = points.findIndex(p => p.mark === event.target)
    if (i < 0) return
    const next = {ArrowRight: i + 1, ArrowUp: i + 1, ArrowLeft: i - 1, ArrowDown: i - 1, Home: 0, End: points.length - 1}[event.key]
    if (event.key === 'Enter' || event.key === ' ') card.querySelector('a')?.focus()
    else if (next === undefined) return
    else if (points[next]) show(points[next].row, true)
    event.preventDefault()
  })
  chart.addEventListener('change', draw)
  new ResizeObserver(() => { if (Math.abs((svg.viewBox.baseVal?.width || 0) - chart.clientWidth) > 1) draw() }).observe(chart)
  draw()
})()
