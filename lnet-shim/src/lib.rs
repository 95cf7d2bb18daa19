//! LNet semantics and an RPC layer on kfab.
