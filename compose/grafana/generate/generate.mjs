// Writes the dashboards of Coro as JSON, by the Grafana Foundation SDK (Apache-2.0), which knows the model of Grafana.
// generate.sh installs it and runs this.
//
// * A dashboard is a list of rows, a row a list of panels; widths are of 24.
// * Every query has data on a running system: e2e/tests/it/dashboards.rs runs each. So none hides its absence by `or vector`.
// * The dashboard of the relay is of any system with a relay, and is kept by hand.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import common from '@grafana/grafana-foundation-sdk/common'
import dashboard from '@grafana/grafana-foundation-sdk/dashboard'
import prometheus from '@grafana/grafana-foundation-sdk/prometheus'
import stat from '@grafana/grafana-foundation-sdk/stat'
import timeseries from '@grafana/grafana-foundation-sdk/timeseries'
import { money } from './money.mjs'
import { saga } from './saga.mjs'
import { servers } from './servers.mjs'

const DATASOURCE = { type: 'prometheus', uid: 'prometheus' }
const HEIGHTS = { number: 4, graph: 8 }

/** Steps of colours: from a value on, a colour. The first one is from the beginning on. */
function thresholds(steps) {
  const all = steps.map(([color, value]) => ({ color, value: value ?? null }))
  return new dashboard.ThresholdsConfigBuilder().mode('absolute').steps(all)
}

function query([expr, legend], index) {
  const refId = String.fromCharCode('A'.charCodeAt(0) + index)
  return new prometheus.DataqueryBuilder().datasource(DATASOURCE).refId(refId).expr(expr).legendFormat(legend ?? '')
}

function number(panel) {
  const reduce = new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']).fields('').values(false)
  const builder = new stat.PanelBuilder()
    .reduceOptions(reduce)
    .colorMode('background')
    .graphMode('none')
    .thresholds(thresholds(panel.colours))
    .targets(panel.queries.map((asked, index) => query(asked, index).instant()))
  if (panel.names) {
    const options = Object.fromEntries(Object.entries(panel.names).map(([value, text], index) => [value, { text, index }]))
    builder.mappings([{ type: 'value', options }])
  }
  return builder
}

function graph(panel) {
  const legend = new common.VizLegendOptionsBuilder().displayMode('list').placement('bottom').showLegend(true).calcs([])
  return new timeseries.PanelBuilder()
    .legend(legend)
    .tooltip(new common.VizTooltipOptionsBuilder().mode('multi').sort('desc'))
    .lineWidth(1)
    .fillOpacity(10)
    .min(0)
    .targets(panel.queries.map((asked, index) => query(asked, index).range()))
}

function built(panel) {
  const builder = panel.kind === 'number' ? number(panel) : graph(panel)
  builder.title(panel.title).datasource(DATASOURCE).height(HEIGHTS[panel.kind]).span(panel.width).unit(panel.unit ?? 'short')
  if (panel.description) builder.description(panel.description)
  return builder
}

function write(folder, { uid, title, description, rows }) {
  const alerts = new dashboard.AnnotationQueryBuilder()
    .name('Alerts')
    .datasource(DATASOURCE)
    .enable(true)
    .hide(false)
    .iconColor('red')
    .expr('ALERTS{alertname!="CoroWatchdog", alertstate="firing"}')
    .titleFormat('{{alertname}}')
    .textFormat('{{job}} {{source}}')
    .step('30s')
  const board = new dashboard.DashboardBuilder(title)
    .uid(uid)
    .description(description)
    .tags(['coro'])
    .refresh('10s')
    .time({ from: 'now-1h', to: 'now' })
    .timezone('browser')
    .tooltip(1)
    .annotation(alerts)
  let id = 1
  for (const row of rows) {
    board.withRow(new dashboard.RowBuilder(row.title).id(id++))
    for (const panel of row.panels) board.withPanel(built(panel).id(id++))
  }
  writeFileSync(join(folder, `${uid}.json`), `${JSON.stringify(board.build(), null, 2)}\n`)
}

const folder = process.argv[2]
if (!folder) throw new Error('usage: node generate.mjs FOLDER')
for (const board of [money, saga, servers]) write(folder, board)
