// k6's modules for Node.js, as far as the loads use them. Requests are real, and block, as k6's do: curl makes them.

import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { registerHooks } from 'node:module'

/** What the load has done: each check with its results, each metric with its values. */
export const seen = { checks: new Map(), metrics: new Map() }

function add (map, name, value) {
  map.set(name, [...(map.get(name) ?? []), value])
}

export function check (value, checks) {
  const results = Object.entries(checks).map(([name, holds]) => {
    const result = Boolean(holds(value))
    add(seen.checks, name, result)
    return result
  })
  return results.every(Boolean)
}

export function sleep (seconds) {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, seconds * 1000)
}

export class Trend {
  constructor (name) { this.name = name }
  add (value) { add(seen.metrics, this.name, value) }
}

/** The iteration that is run; `scenario` is set by whoever runs it. */
export const exec = { scenario: { name: 'step_1', iterationInTest: 0 } }

/** As Go writes the names of headers. */
const canonical = name => name.toLowerCase().replace(/(^|-)[a-z]/g, letter => letter.toUpperCase())

function request (method, url, body, { headers = {} } = {}) {
  const fields = Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`])
  const data = body === null ? [] : ['--data-binary', '@-']
  const options = ['-sS', '-i', '--max-time', '60', '-X', method, ...fields, ...data, url]
  const { stdout, stderr, status } = spawnSync('curl', options, { input: body ?? '', encoding: 'utf8' })
  if (status !== 0) throw new Error(`${method} ${url}: ${stderr}`)
  const [head, ...rest] = stdout.split('\r\n\r\n')
  const [first, ...lines] = head.split('\r\n')
  const text = rest.join('\r\n\r\n')
  return {
    status: Number(first.split(' ')[1]),
    headers: Object.fromEntries(lines.map(line => [canonical(line.split(':')[0]), line.slice(line.indexOf(':') + 1).trim()])),
    body: text,
    json: selector => selector === undefined ? JSON.parse(text) : JSON.parse(text)[selector]
  }
}

export const http = {
  get: (url, params) => request('GET', url, null, params),
  post: (url, body, params) => request('POST', url, body, params)
}

const here = import.meta.url
const SOURCES = {
  k6: `export { check, sleep } from '${here}'`,
  'k6/http': `export { http as default } from '${here}'`,
  'k6/execution': `export { exec as default } from '${here}'`,
  'k6/metrics': `export { Trend } from '${here}'`
}
registerHooks({
  resolve: (specifier, context, next) => specifier in SOURCES ? { url: `shim:${specifier}`, shortCircuit: true } : next(specifier, context),
  load: (url, context, next) => url.startsWith('shim:') ? { format: 'module', source: SOURCES[url.slice('shim:'.length)], shortCircuit: true } : next(url, context)
})

globalThis.__ENV = { ...process.env }
globalThis.open = path => readFileSync(new URL(path, here), 'utf8')
