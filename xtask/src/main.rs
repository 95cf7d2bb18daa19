//! Tasks of the kfab repository.

fn main() {}
