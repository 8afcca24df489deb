"""Mailbox of aiosmtpd, which knows nobody whose name begins with `nobody`."""

from aiosmtpd.handlers import Mailbox


class Refusing(Mailbox):
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody"):
            return f"550 5.1.1 <{address}>: there is no such person"
        envelope.rcpt_tos.append(address)
        return "250 OK"
