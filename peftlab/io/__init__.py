"""Files and streams: atomic writes, untrusted files, redaction of secrets."""
