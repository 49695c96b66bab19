//! fake-gcs-server, started and stopped.
