// An OpenID provider at http://127.0.0.1:PORT, which gives access tokens by RFC 9068 for client credentials.
//
// * A line on standard input gives it new keys, `ID ALG ID ALG …`: the first one signs, all are published, and the keys
//   of the line before are withdrawn. It answers `ready`.
// * A token lives for 5 minutes; for the resource that ends in /brief, for 5 seconds.
// * It ends with its standard input.

import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { Provider } from 'oidc-provider';

const [port, secret] = process.argv.slice(2);
const audience = 'https://pay.example';

const kinds = {
  ES256: () => generateKeyPairSync('ec', { namedCurve: 'P-256' }),
  RS256: () => generateKeyPairSync('rsa', { modulusLength: 2048 }),
};

function key(kid, alg) {
  return { ...kinds[alg]().privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' };
}

function provider(keys) {
  const [{ alg, kid }] = keys;
  return new Provider(`http://127.0.0.1:${port}`, {
    jwks: { keys },
    clients: [
      {
        client_id: 'app',
        client_secret: secret,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
    clientDefaults: { id_token_signed_response_alg: alg },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => audience,
        getResourceServerInfo: (_, resource) => ({
          scope: 'payments:read payments:write',
          audience,
          accessTokenTTL: resource.endsWith('/brief') ? 5 : 300,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg, kid } },
        }),
      },
    },
  });
}

let current;
const server = createServer((request, response) => current(request, response));
const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const words = line.split(' ');
  const keys = [];
  for (let at = 0; at < words.length; at += 2) keys.push(key(words[at], words[at + 1]));
  current = provider(keys).callback();
  if (server.listening) console.log('ready');
  else server.listen(Number(port), '127.0.0.1', () => console.log('ready'));
});
lines.on('close', () => process.exit());
