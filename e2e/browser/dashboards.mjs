// Pictures of dashboards with the data of a Prometheus, where there is no Grafana: a picture for each file of DASHBOARDS.
//
// * Environment: DASHBOARDS (files of compose/grafana/dashboards, with spaces between), PROMETHEUS_URL, MINUTES (the range; 15),
//   CHROMIUM (a program), PICTURES (a folder).
// * Places, titles, units, queries, legends and colours are the dashboard's. How it is drawn is not Grafana's.
// * A panel without data ends it.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { pictures, withBrowser } from './browser.mjs'

const { DASHBOARDS: files, PROMETHEUS_URL: prometheus, MINUTES: minutes = '15' } = process.env
const COLUMN_PX = 58
const ROW_PX = 24
const POINTS = 180
const LEGENDS_MAX = 8
const COLOURS = ['#1f77b4', '#d95f02', '#2ca02c', '#7b4ab5', '#c2185b', '#00838f', '#8d6e63', '#616161', '#afb42b', '#ef9a9a', '#5c6bc0', '#004d40']
const BACKGROUNDS = { green: '#2e7d32', orange: '#b75d00', red: '#c62828' }
const STYLE = `
  body { margin: 0; padding: 12px; width: ${24 * COLUMN_PX}px; background: #f4f5f5; color: #24292e; font: 12px system-ui, sans-serif }
  h1 { font-size: 18px; margin: 0 0 8px } h2 { font-size: 14px; margin: 0; align-self: end }
  h3 { font-size: 12px; margin: 0 0 2px; font-weight: 600 } main { display: grid; grid-template-columns: repeat(24, 1fr); gap: 6px }
  section { background: #fff; border: 1px solid #d8d9da; padding: 6px; overflow: hidden } svg { display: block } text { font-size: 10px; fill: #57606a }
  ul { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 0 8px; font-size: 10px } li::before { content: '▬ '; color: var(--colour) }
  .values { display: flex; gap: 4px; flex-wrap: wrap } .values span { flex: 1; min-width: 64px; color: #fff; text-align: center; padding: 3px; font-size: 16px }
  .values small { display: block; font-size: 10px }`

const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 })

function bytes (value) {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(1, value)) / 10)))
  return `${compact.format(value / 1024 ** power)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}`
}

function seconds (value) {
  if (value === 0) return '0 s'
  if (value < 1) return `${compact.format(value * 1000)} ms`
  return value < 600 ? `${compact.format(value)} s` : `${compact.format(value / 60)} min`
}

const UNITS = {
  short: value => compact.format(value),
  bytes,
  Bps: value => `${bytes(value)}/s`,
  s: seconds,
  percentunit: value => `${compact.format(value * 100)} %`,
  reqps: value => `${compact.format(value)}/s`,
  ops: value => `${compact.format(value)}/s`
}

const safe = text => String(text).replace(/[&<>"]/g, character => `&#${character.charCodeAt(0)};`)

/** The series of a query, each with the text of its legend. */
async function ask (kind, { expr, legendFormat }, parameters) {
  const query = expr.replaceAll('$__rate_interval', '1m')
  const answer = await fetch(`${prometheus}/api/v1/${kind}?${new URLSearchParams({ query, ...parameters })}`)
  const { status, error, data } = await answer.json()
  assert.equal(status, 'success', `${query}: ${error}`)
  return data.result.map(({ metric, value, values }) => {
    const legend = (legendFormat ?? '').replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? '')
    const points = (values ?? [value]).map(([at, number]) => [at, Number(number)])
    return { legend, points: points.filter(([, number]) => Number.isFinite(number)) }
  })
}

async function stat ({ targets, fieldConfig: { defaults } }) {
  const found = (await Promise.all(targets.map(target => ask('query', target, {})))).flat()
  const boxes = found.flatMap(({ legend, points }) => points.map(([, value]) => {
    const { color } = defaults.thresholds.steps.findLast(step => step.value === null || value >= step.value)
    const text = defaults.mappings?.[0]?.options[value]?.text ?? UNITS[defaults.unit](value)
    return `<span style="background:${BACKGROUNDS[color]}">${safe(text)}<small>${safe(legend)}</small></span>`
  }))
  return boxes.length && `<div class="values">${boxes.join('')}</div>`
}

async function graph ({ targets, gridPos, fieldConfig: { defaults } }, { start, end }) {
  const step = Math.max(5, Math.round((end - start) / POINTS))
  const asked = targets.map(target => ask('query_range', target, { start, end, step }))
  const series = (await Promise.all(asked)).flat().filter(({ points }) => points.length)
  const [width, height, left, bottom] = [gridPos.w * COLUMN_PX - 24, gridPos.h * ROW_PX - 78, 54, 16]
  const most = Math.max(...series.flatMap(({ points }) => points.map(([, value]) => value))) || 1
  const x = at => left + (at - start) / (end - start) * (width - left)
  const y = value => (height - bottom) * (1 - value / (most * 1.05)) + 4
  // Where values are missing there is no line.
  const move = (points, n) => n === 0 || points[n][0] - points[n - 1][0] > 2 * step ? 'M' : 'L'
  const drawn = points => points.map(([at, value], n) => `${move(points, n)}${x(at).toFixed(1)},${y(Math.max(0, value)).toFixed(1)}`).join('')
  const line = ({ points }, n) => `<path fill="none" stroke="${COLOURS[n % COLOURS.length]}" stroke-width="1.4" d="${drawn(points)}"/>`
  const rule = share => `<line x1="${left}" x2="${width}" y1="${y(most * share)}" y2="${y(most * share)}" stroke="#e4e7e7"/>
    <text x="${left - 4}" y="${y(most * share) + 3}" text-anchor="end">${safe(UNITS[defaults.unit](most * share))}</text>`
  const clock = share => `<text x="${x(start + (end - start) * share)}" y="${height}" text-anchor="${share ? 'end' : 'start'}">
    ${new Date((start + (end - start) * share) * 1000).toISOString().slice(11, 16)}</text>`
  const legends = series.slice(0, LEGENDS_MAX).map(({ legend }, n) => `<li style="--colour:${COLOURS[n % COLOURS.length]}">${safe(legend)}</li>`)
  if (series.length > LEGENDS_MAX) legends.push(`<li style="--colour:#fff">and ${series.length - LEGENDS_MAX} more</li>`)
  return series.length && `<svg width="${width}" height="${height}">${[0, 0.5, 1].map(rule).join('')}${[0, 0.5, 1].map(clock).join('')}
    ${series.map(line).join('')}</svg><ul>${legends.join('')}</ul>`
}

async function drawn (board, range, without) {
  const panels = board.panels.map(async panel => {
    const { x, w, h } = panel.gridPos
    if (panel.type === 'row') return `<h2 style="grid-column:1/-1">${safe(panel.title)}</h2>`
    const content = await (panel.type === 'stat' ? stat(panel) : graph(panel, range))
    if (!content) without.push(panel.title)
    return `<section style="grid-column:${x + 1}/span ${w};height:${h * ROW_PX - 14}px"><h3>${safe(panel.title)}</h3>${content}</section>`
  })
  return `<style>${STYLE}</style><h1>${safe(board.title)}</h1><main>${(await Promise.all(panels)).join('')}</main>`
}

await withBrowser(async browser => {
  const end = Math.floor(Date.now() / 1000)
  const range = { start: end - minutes * 60, end }
  const page = await browser.newPage({ viewport: { width: 24 * COLUMN_PX + 24, height: 800 } })
  for (const file of files.split(' ')) {
    const without = []
    await page.setContent(await drawn(JSON.parse(readFileSync(file, 'utf8')), range, without))
    await page.screenshot({ path: join(pictures, `${basename(file, '.json')}.png`), fullPage: true })
    assert.deepEqual(without, [], `${file}: panels without data`)
  }
})
