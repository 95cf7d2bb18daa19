//! RPC with bulk data on kfab.
