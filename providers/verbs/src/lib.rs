//! kfab provider: verbs.
