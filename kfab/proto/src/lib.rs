//! The kfab protocol as a sans-io state machine.
