//! What the conformance suite does not ask, on real cards: many connections, peers killed in mid-write, links cut, cards taken out, windows
//! revoked under fire, and that nothing is left behind: no queue pair, no registration, no receiver-not-ready.
//!
//! `KFAB_LAB_RDMA=1` demands cards, two of them joined by a cable as in `cargo xtask lab`; elsewhere the tests are skipped, with
//! the reason.

#[path = "cards/driver.rs"]
mod driver;
#[path = "cards/life.rs"]
mod life;
#[path = "cards/machine.rs"]
mod machine;
#[path = "cards/memory.rs"]
mod memory;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    driver::serve_if_child();
    memory::live_if_child();
    let mut args = Arguments::from_args();
    // They count what the machine holds.
    args.test_threads = Some(1);
    let why = match machine::cards() {
        Ok(names) if names.len() >= 2 => None,
        Ok(names) => Some(format!("two cards are needed, here is {}", names.join(" "))),
        Err(why) => Some(why),
    };
    if let Some(why) = &why {
        eprintln!("skipped: {why}");
        if machine::demanded() {
            eprintln!("KFAB_LAB_RDMA demands RDMA cards");
            std::process::exit(1);
        }
    }
    let all: [(&str, fn()); 18] = [
        ("probe_names_the_cards", life::probe_names_the_cards),
        ("two_hundred_connections", life::two_hundred_connections),
        ("no_receiver_is_ever_not_ready", life::no_receiver_is_ever_not_ready),
        (
            "what_the_dead_have_sent_is_no_receive_for_the_living",
            life::what_the_dead_have_sent_is_no_receive_for_the_living,
        ),
        ("the_short_way_down_keeps_the_order", life::the_short_way_down_keeps_the_order),
        ("a_large_read_and_write_in_pieces", life::a_large_read_and_write_in_pieces),
        ("nothing_is_written_after_revoke", life::nothing_is_written_after_revoke),
        ("kept_registrations_make_way", memory::kept_registrations_make_way),
        (
            "a_window_that_the_card_holds_on_to_is_closed",
            memory::a_window_that_the_card_holds_on_to_is_closed,
        ),
        ("what_was_never_promised_is_not_open", memory::what_was_never_promised_is_not_open),
        ("peers_killed_in_mid_write", life::peers_killed_in_mid_write),
        ("a_cut_link_breaks_and_heals", life::a_cut_link_breaks_and_heals),
        ("a_port_that_is_down_is_used_when_it_comes_up", life::a_port_that_is_down_is_used_when_it_comes_up),
        ("an_address_may_move_in_the_cards_table", life::an_address_may_move_in_the_cards_table),
        ("the_manager_connects_when_asked", life::the_manager_connects_when_asked),
        ("a_strangers_request_is_nothing", life::a_strangers_request_is_nothing),
        ("a_card_taken_out_is_let_go_and_used_again", life::a_card_taken_out_is_let_go_and_used_again),
        ("packets_lost_in_silence_end_in_an_error", life::packets_lost_in_silence_end_in_an_error),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            std::panic::catch_unwind(test).map_err(|e| Failed::from(driver::text_of(e.as_ref())))
        })
        .with_ignored_flag(why.is_some())
    };
    libtest_mimic::run(&args, all.into_iter().map(trial).collect()).exit();
}
