//! Programs that show kfab. Each starts both sides itself: `cargo run -p kfab-examples --example hello`.

#![forbid(unsafe_code)]
