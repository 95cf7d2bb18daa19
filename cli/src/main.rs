//! The kfab command.

fn main() {}
