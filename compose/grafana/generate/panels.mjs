// How a panel is said: the kind, the width of 24, and queries as [PromQL, legend].

/** A figure with a colour. `colours`: [colour] from the beginning on, then [colour, from this value on]. */
export const number = (title, width, unit, expr, colours, rest = {}) => ({
  kind: 'number',
  title,
  width,
  unit,
  queries: Array.isArray(expr) ? expr : [[expr]],
  colours,
  ...rest,
})

export const graph = (title, width, unit, queries, description) => ({ kind: 'graph', title, width, unit, queries, description })

/** Median and 99th percentile of a histogram. */
export const quantiles = (histogram, labels = '') =>
  ['0.5', '0.99'].map((quantile) => [
    `histogram_quantile(${quantile}, sum by (le) (rate(${histogram}_bucket${labels}[$__rate_interval])))`,
    `p${Number(quantile) * 100}`,
  ])

export const rate = (counter, by) => [`sum by (${by}) (rate(${counter}[$__rate_interval]))`, `{{${by}}}`]

export const good = (bad) => [['green'], ['red', bad]]
