// A person cancels a payment. The work queue is down meanwhile, so that the gateway cannot have been called.

import assert from 'node:assert/strict'
import { isAccessible, noErrors, openPage, pay, picture, shows, stands, withBrowser } from './browser.mjs'

await withBrowser(async browser => {
  const page = await openPage(browser, { scheme: 'dark' })
  await shows(page, 'available', '1,000,000')
  await pay(page, '081234567890', 15_000)
  await stands(page, 'Money reserved')
  await page.getByRole('button', { name: 'Cancel payment' }).click()
  await stands(page, 'Cancelled')
  const steps = await page.locator('#steps li').allTextContents()
  assert.deepEqual(steps.map(step => step.replace(/[\d:]+$/, '')), ['Accepted', 'Reserved', 'Asked to cancel', 'Cancelled'])
  assert.match(await page.locator('#state').textContent(), /Nothing was charged\./)
  await shows(page, 'available', '1,000,000')
  await shows(page, 'held', '0')
  await isAccessible(page, 'a cancelled payment')
  await picture(page, 'phone-dark-cancelled')
  noErrors(page)
})
