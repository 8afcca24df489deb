// A browser on the page that the edge serves: what scenarios share.
//
// * Environment: EDGE_URL, USER_ID (a user with money), CHROMIUM (a program), PICTURES (a folder, for what is worth a look).
// * Whatever the page writes to the console as an error ends the scenario, unless it expects failed requests.

import assert from 'node:assert/strict'
import { mkdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { chromium } from 'playwright-core'

export const { EDGE_URL: edge, USER_ID: user, CHROMIUM: program, PICTURES: pictures } = process.env
const AXE = readFileSync(new URL('node_modules/axe-core/axe.min.js', import.meta.url), 'utf8')
const WAIT_TIMEOUT_MS = 90_000

/** Runs a scenario with a browser of its own. */
export async function withBrowser (scenario) {
  mkdirSync(pictures, { recursive: true })
  // In a container there is no sandbox to be had, and little shared memory.
  const args = ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu']
  const browser = await chromium.launch({ executablePath: program, args })
  try {
    await scenario(browser)
  } finally {
    await browser.close()
  }
}

/** The page, as the user sees it. `errors` has what the console shows as an error. */
export async function openPage (browser, { width = 360, height = 780, scheme = 'light', hash = '', asUser = user } = {}) {
  const options = { viewport: { width, height }, colorScheme: scheme, locale: 'en-GB', reducedMotion: 'reduce' }
  const context = await browser.newContext(options)
  const page = await context.newPage()
  page.setDefaultTimeout(WAIT_TIMEOUT_MS)
  page.errors = []
  page.on('console', message => { if (message.type() === 'error') page.errors.push(message.text()) })
  page.on('pageerror', error => page.errors.push(String(error)))
  await page.goto(`${edge}/pay`)
  await payAs(page, asUser)
  await page.evaluate(hash => { window.location.hash = hash }, hash)
  return page
}

export async function payAs (page, id) {
  await page.getByText('Paying as').click()
  await page.getByLabel('User id').fill(id)
  await page.getByRole('button', { name: 'Use' }).click()
  await until('the services are listed', async () => await page.locator('#service_id option').count() > 0)
}

export async function fill (page, number, amount) {
  await page.getByLabel('Service', { exact: true }).selectOption('electricity')
  await page.getByLabel('Client number', { exact: true }).fill(number)
  await page.getByLabel('Amount').fill(String(amount))
}

/** Asks to pay; returns the id of the payment, once it is accepted. */
export async function pay (page, number, amount) {
  await fill(page, number, amount)
  const before = page.url()
  await page.getByRole('button', { name: /^Pay/ }).click()
  await until('the payment is accepted', () => page.url() !== before)
  return new URL(page.url()).hash.slice(1)
}

/** Waits until the banner of the payment begins so. */
export async function stands (page, title) {
  await until(`the payment is "${title}"`, async () => await page.locator('#state strong').textContent().catch(() => '') === title)
}

export async function shows (page, id, text) {
  await until(`${id} is "${text}"`, async () => await page.locator(`#${id}`).textContent() === text)
}

export async function until (what, condition) {
  const begun = Date.now()
  while (!await condition()) {
    assert.ok(Date.now() - begun < WAIT_TIMEOUT_MS, `in vain: ${what}`)
    await sleep(50)
  }
}

/** axe finds nothing, and nothing has to be scrolled sideways. */
export async function isAccessible (page, what) {
  await page.evaluate(AXE)
  const found = await page.evaluate(() => window.axe.run(document, { rules: { 'target-size': { enabled: true } } }))
  assert.ok(found.passes.length > 20, `axe looked at ${found.passes.length} rules only`)
  const violations = found.violations.map(rule => `${rule.id}: ${rule.nodes.map(node => node.html).join(' ')}`)
  assert.deepEqual(violations, [], what)
  const [content, window_] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth])
  assert.ok(content <= window_, `${what}: ${content} px of content in ${window_} px`)
}

export async function picture (page, name) {
  await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true })
}

export function noErrors (page) {
  assert.deepEqual(page.errors, [])
}
