// A person pays with the keyboard alone and watches the payment complete: on a phone and at a desk, in light and in dark.

import assert from 'node:assert/strict'
import { isAccessible, noErrors, openPage, pay, picture, shows, stands, until, withBrowser } from './browser.mjs'

const PHONE = { width: 360, height: 780 }
const DESK = { width: 1180, height: 860 }

/** The stops of the tab key, from the first of the page on. */
async function stops (page, count) {
  await page.locator('summary').focus()
  const found = []
  for (let n = 0; n < count; n += 1) {
    await page.keyboard.press('Tab')
    found.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim()))
  }
  return found
}

await withBrowser(async browser => {
  const page = await openPage(browser, PHONE)
  await shows(page, 'available', '1,000,000')
  await isAccessible(page, 'the form')
  await picture(page, 'phone-light-form')
  assert.deepEqual(await stops(page, 9), ['service_id', 'client_number', 'paid', 'slow', 'declined', 'no answer', 'amount', 'send', 'query'])

  // Everything by keyboard: the service is chosen already.
  await page.evaluate(() => {
    window.states = []
    const note = () => { const text = document.querySelector('#state strong')?.textContent; if (text) window.states.push(text) }
    new MutationObserver(note).observe(document.querySelector('#state'), { childList: true, subtree: true, characterData: true })
  })
  await page.locator('#client_number').focus()
  await page.keyboard.type('081234567890-slow1500')
  for (let n = 0; n < 5; n += 1) await page.keyboard.press('Tab')
  await page.keyboard.type('15,000')
  await shows(page, 'send', 'Pay 15,000')
  await page.keyboard.press('Enter')
  await stands(page, 'Money reserved')
  assert.equal(await page.evaluate(() => document.activeElement.id), 'payment-title', 'whoever cannot see is led to the payment')
  await shows(page, 'held', '15,000')
  await shows(page, 'available', '985,000')
  await isAccessible(page, 'a payment under way')
  await picture(page, 'phone-light-going')
  await stands(page, 'Paid')
  await shows(page, 'held', '0')
  await shows(page, 'available', '985,000')
  const states = await page.evaluate(() => window.states)
  assert.deepEqual(states.filter(state => state !== 'Accepted'), ['Money reserved', 'Paid'], 'each state is said once')
  assert.equal(await page.locator('#amount').inputValue(), '', 'the bill is not there to be paid again')
  assert.ok(await page.locator('#cancel').isHidden(), 'there is nothing left to cancel')
  await until('the list has it', async () => (await page.locator('#list li').first().textContent()).includes('Paid'))
  await isAccessible(page, 'a completed payment')
  await picture(page, 'phone-light-paid')
  noErrors(page)

  // The address names the payment: a reload, or another page, shows it again.
  const hash = new URL(page.url()).hash
  for (const [name, options] of [['phone-dark', { ...PHONE, scheme: 'dark' }], ['desk-light', DESK], ['desk-dark', { ...DESK, scheme: 'dark' }], ['narrow', { width: 320, height: 640 }]]) {
    const other = await openPage(browser, { ...options, hash })
    await stands(other, 'Paid')
    await pay(other, '081-decline', 2_500)
    await stands(other, 'Not paid')
    await shows(other, 'available', '985,000')
    await isAccessible(other, `${name}: declined`)
    await picture(other, `${name}-declined`)
    await other.locator('#list button', { hasText: '15,000' }).click()
    await stands(other, 'Paid')
    await isAccessible(other, `${name}: completed`)
    await picture(other, `${name}-paid`)
    noErrors(other)
    await other.context().close()
  }
})
