//! What guests said: a bounded ring of log lines on disk for each function.
