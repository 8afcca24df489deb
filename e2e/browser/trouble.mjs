// Answers are lost, streams break, input is wrong, tokens are needed, search is away: no payment is made twice, and the page
// says what is the matter in plain words.

import assert from 'node:assert/strict'
import { edge, fill, isAccessible, openPage, pay, picture, shows, stands, until, user, withBrowser } from './browser.mjs'

const POSTS = /\/payments$/
const problem = (status, type, detail) => ({
  status,
  contentType: 'application/problem+json',
  body: JSON.stringify({ type: `urn:coro:problem:${type}`, title: detail, status, detail })
})

/** Answers of `POST /payments` are lost until `goOn`; the first request is made all the same. Returns the keys that were sent. */
async function loseAnswers (page) {
  const keys = []
  let lost = true
  await page.route(POSTS, async route => {
    if (route.request().method() !== 'POST') return await route.fallback()
    keys.push(route.request().headers()['idempotency-key'])
    if (!lost) return await route.continue()
    if (keys.length === 1) assert.equal((await route.fetch()).status(), 201)
    await route.abort('connectionreset')
  })
  return { keys, goOn: () => { lost = false } }
}

async function lostAnswers (page) {
  const { keys, goOn } = await loseAnswers(page)
  await fill(page, '081234567890', 1_000)
  await page.getByRole('button', { name: /^Pay/ }).click()
  await shows(page, 'sending', 'No answer yet. Sending the same payment again. It is made only once.')
  assert.ok(await page.locator('#amount').isDisabled() && await page.locator('#send').isDisabled(), 'another bill would be another payment')
  await isAccessible(page, 'no answer yet')
  await picture(page, 'phone-light-no-answer')
  const sent = keys.length
  await page.reload()
  await until('it is sent again after a reload', () => keys.length > sent)
  goOn()
  await stands(page, 'Paid')
  assert.equal(new Set(keys).size, 1, `one key for one payment: ${keys}`)
  await page.unroute(POSTS)
}

async function brokenStream (page) {
  const resumed = []
  await page.route(/\/events$/, async route => {
    const headers = route.request().headers()
    resumed.push(headers['last-event-id'])
    if (resumed.length > 1) return await route.continue()
    const payment = await (await fetch(route.request().url().replace('/events', ''), { headers: { 'x-user-id': user } })).json()
    resumed.version = String(payment.version)
    await route.fulfill({ contentType: 'text/event-stream', body: `retry:100\n\nid:${payment.version}\nevent:payment\ndata:${JSON.stringify(payment)}\n\n` })
  })
  await pay(page, '081-slow2000', 1_000)
  await stands(page, 'Paid')
  assert.deepEqual(resumed.slice(0, 2), [undefined, resumed.version], 'it is resumed behind what was shown')
  await page.unroute(/\/events$/)
}

async function wrongInput (page) {
  await page.getByRole('button', { name: /^Pay/ }).click()
  await shows(page, 'client_number-wrong', 'Enter the client number.')
  assert.equal(await page.evaluate(() => document.activeElement.id), 'client_number', 'the first wrong field has the focus')
  for (const amount of ['', '0', '-1', '1.5', 'x']) {
    await fill(page, '081', amount)
    await page.getByRole('button', { name: /^Pay/ }).click()
    await shows(page, 'amount-wrong', 'Enter a whole amount, 1 or more.')
  }
  await isAccessible(page, 'wrong fields')
  await picture(page, 'phone-light-wrong')
  // What only the service refuses is said beside its field, too.
  await fill(page, '081', '9007199254740993')
  await page.getByRole('button', { name: /^Pay/ }).click()
  await until('the service names the field', async () => (await page.locator('#amount-wrong').textContent()).includes('9007199254740991'))
  await pay(page, '<img src=x onerror=alert(1)>', '900,000,000')
  await stands(page, 'Not paid')
  assert.match(await page.locator('#state').textContent(), /There is not enough money\. Nothing was charged\./)
  assert.match(await page.locator('#what').textContent(), /<img src=x/, 'it is text')
  assert.equal(await page.locator('img').count(), 0)
}

async function search (page) {
  await page.getByRole('searchbox').fill('electricity')
  const words = page.locator('#found')
  if (process.env.SEARCH_URL) {
    await until('search finds it', async () => {
      await page.getByRole('button', { name: 'Search' }).click()
      return await page.locator('#list li').count() > 0 && (await page.locator('#list').textContent()).includes('081234567890')
    })
  } else {
    await page.getByRole('button', { name: 'Search' }).click()
    await shows(page, 'found', 'Search is not part of this installation.')
  }
  for (const [answer, text] of [
    [problem(503, 'unavailable', 'No search.'), 'Search is not part of this installation.'],
    [problem(404, 'not-found', 'No search.'), 'Search is not part of this installation.'],
    [{ ...problem(503, 'unavailable', 'Later.'), headers: { 'retry-after': '1' } }, 'Search does not answer now. Try again later.']
  ]) {
    await page.route(/\/payments\/search/, route => route.fulfill(answer))
    await page.getByRole('searchbox').fill(`words ${text.length}`)
    await page.getByRole('button', { name: 'Search' }).click()
    await until(text, async () => await words.textContent() === text)
    await page.unroute(/\/payments\/search/)
  }
  await page.getByRole('searchbox').fill('')
  await until('all payments are back', async () => await page.locator('#list li').count() > 1)
}

/** As where AUTH=jwt: calls need a token, which this test exchanges for its user. */
async function token (page) {
  await page.route(/\/(balance|payments)/, async route => {
    const { authorization, ...headers } = route.request().headers()
    if (authorization !== 'Bearer a.b.c') return await route.fulfill(problem(401, 'unauthorized', 'The call needs a token.'))
    await route.continue({ headers: { ...headers, 'x-user-id': user } })
  })
  await page.goto('about:blank')
  await page.goto(`${edge}/pay`)
  await shows(page, 'user-wrong', 'Paste an access token of your issuer.')
  await isAccessible(page, 'a token is needed')
  await picture(page, 'phone-light-token')
  assert.equal(await page.getByLabel('Access token').getAttribute('type'), 'password')
  await page.getByLabel('Access token').fill('a.b.c')
  await page.getByRole('button', { name: 'Use' }).click()
  await pay(page, '081234567890', 1_000)
  await stands(page, 'Paid')
  const kept = await page.evaluate(() => JSON.stringify([{ ...window.sessionStorage }, { ...window.localStorage }]))
  assert.ok(!kept.includes('a.b.c'), 'a token is kept nowhere')
}

await withBrowser(async browser => {
  const page = await openPage(browser)
  await shows(page, 'available', '1,000,000')
  await lostAnswers(page)
  await brokenStream(page)
  await wrongInput(page)
  await search(page)
  await token(page)
  const unexpected = page.errors.filter(text => !text.startsWith('Failed to load resource'))
  assert.deepEqual(unexpected, [])
})
