// Parses AsyncAPI documents; ends with 1 if one is refused, or if anything in it is worth a warning.
import { Parser, fromFile } from '@asyncapi/parser'

const INFORMATION = 2
let good = process.argv.length > 2
for (const path of process.argv.slice(2)) {
  const { document, diagnostics } = await fromFile(new Parser(), path).parse()
  const found = diagnostics.filter(({ severity }) => severity < INFORMATION)
  for (const { message, path } of found) {
    console.log(`${message} at ${path.join('.')}`)
  }
  good &&= document !== undefined && found.length === 0
  console.log(`${path}: ${document === undefined ? 'refused' : `AsyncAPI ${document.version()}, ${document.messages().length} messages`}`)
}
process.exit(good ? 0 : 1)
