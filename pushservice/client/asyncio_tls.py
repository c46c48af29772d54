"""The TLS context of the client for asyncio.

Must not know: connections, or why certificates are refused.
"""

from __future__ import annotations

import ssl

from pushservice.client.options import Options


def tls_context(options: Options) -> ssl.SSLContext | None:
    """The context for connections by these options; None for plain ones.

    Raises ValueError and OSError where the file named by `ca` holds no certificates.
    """
    if not options.secure:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Only subjectAltName names hosts; a common name is not checked.
    context.hostname_checks_common_name = False
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(options.ca)
        except ssl.SSLError:
            raise ValueError(f"ca: {options.ca} holds no certificates in PEM") from None
        except OSError as error:
            raise OSError(error.errno, f"ca: {error.strerror}", str(options.ca)) from None
    return context
