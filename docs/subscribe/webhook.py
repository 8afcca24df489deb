"""Receives the webhooks of the notifier and prints each once. Needs, in a virtual environment: pip install standardwebhooks"""

import http.server
import os
import sys

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["WEBHOOK_SECRET"])
handled = set()  # Of a service: a table beside the effect, in the same transaction, with the id as its key.


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            event = webhook.verify(body, dict(self.headers))
        except WebhookVerificationError as error:
            print(f"refused: {error}", file=sys.stderr)
            return self.answer(401)
        message_id = self.headers["webhook-id"]
        if message_id not in handled:
            data = event["data"]
            print(event["type"], data["payment_id"], data["status"], data["amount"], flush=True)
            handled.add(message_id)
        # After the effect: until then the webhook comes again.
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Receiver).serve_forever()
