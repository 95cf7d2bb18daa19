//! The command as its users meet it: real processes, every one under a watchdog.

mod bad_input;
mod ends;
mod lnet;
mod measure;
mod run;
#[path = "../../../kfab/tests/common/skip.rs"]
mod skip;
mod terminal;
mod watch;
