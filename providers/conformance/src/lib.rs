//! kfab provider: conformance.
