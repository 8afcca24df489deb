// The biller does not answer: the page says so, and asks nobody to pay again, until the outcome is known.

import assert from 'node:assert/strict'
import { isAccessible, noErrors, openPage, pay, picture, stands, withBrowser } from './browser.mjs'

await withBrowser(async browser => {
  const page = await openPage(browser, { width: 1180, height: 860 })
  await pay(page, '081-thenhttp500-lag8000', 15_000)
  await stands(page, 'Do not pay again')
  assert.match(await page.locator('#state').textContent(), /Your money stays reserved/)
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme })
    await isAccessible(page, `an unknown outcome, ${scheme}`)
    await picture(page, `desk-${scheme}-unknown`)
  }
  await stands(page, 'Paid')
  noErrors(page)
})
