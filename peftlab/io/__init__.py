"""Files and streams: atomic writes, checks of untrusted files, redaction of secrets."""
