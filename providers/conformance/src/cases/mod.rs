//! The cases, grouped by what they are about. A case asserts contents, never speed, and leaves hanging to the watchdog.

mod close;
mod connect;
mod death;
mod flow;
mod frames;
mod rma;
mod take;
mod wait;

use crate::bench::Bench;
use crate::rig::Rig;
use kfab_core::spi::Caps;

/// One behaviour.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Why it does not apply to a rig with these capabilities, if it does not.
    pub(crate) needs: fn(&dyn Rig, &Caps) -> Option<&'static str>,
    pub(crate) run: fn(&Bench),
}

fn always(_: &dyn Rig, _: &Caps) -> Option<&'static str> {
    None
}

fn real_time(rig: &dyn Rig, _: &Caps) -> Option<&'static str> {
    (!rig.real_time()).then_some("time is virtual")
}

fn has_rma(_: &dyn Rig, caps: &Caps) -> Option<&'static str> {
    (!caps.rma).then_some("no one-sided access")
}

fn has_victim(rig: &dyn Rig, _: &Caps) -> Option<&'static str> {
    rig.spawn_peer().is_none().then_some("the rig has no peer to kill")
}

fn has_keys(rig: &dyn Rig, _: &Caps) -> Option<&'static str> {
    (!rig.keys()).then_some("the rig has no keys")
}

fn has_nobody(rig: &dyn Rig, _: &Caps) -> Option<&'static str> {
    rig.nobody().is_none().then_some("the rig names no place without a listener")
}

fn has_places(rig: &dyn Rig, _: &Caps) -> Option<&'static str> {
    let text = "places to listen at cannot be chosen";
    let port = rig.open(&Default::default()).expect("another port");
    port.ways().first().is_none_or(|w| rig.listen_at(w).is_none()).then_some(text)
}

macro_rules! cases {
    ($($needs:ident: $($module:ident::$case:ident),+;)+) => {
        /// Every case.
        pub(crate) const CASES: &[Case] =
            &[$($(Case { name: stringify!($case), needs: $needs, run: $module::$case }),+),+];
    };
}

cases! {
    always: connect::connects_and_accepts, connect::a_malformed_way_is_an_error_that_names_it,
        connect::a_foreign_scheme_is_an_error, connect::every_way_parses_and_reaches,
        connect::fifty_connections_are_told_apart, connect::both_sides_may_dial, connect::closed_before_it_was_up,
        connect::names_are_not_used_again, connect::a_full_port_refuses;
    has_nobody: connect::nobody_there_is_refused;
    has_places: connect::a_taken_place_is_an_error, connect::a_new_port_at_an_old_place_is_reached;
    has_keys: connect::the_same_key_connects, connect::another_key_is_denied, connect::no_key_is_denied;
    always: frames::inline_parts_of_every_length, frames::borrowed_bodies_of_every_size,
        frames::owned_bodies_of_every_size, frames::owned_bodies_of_several_slices, frames::window_memory_as_body,
        frames::many_frames_arrive, frames::a_batch_arrives, frames::more_waits_for_flush,
        frames::more_leaves_with_poll, frames::a_borrowed_body_may_change_after_post,
        frames::owned_memory_is_let_go, frames::too_large_a_body_is_refused;
    always: take::an_exact_landing, take::a_longer_landing_keeps_its_rest, take::a_shorter_landing_cuts,
        take::a_body_may_be_discarded, take::a_landing_in_a_window, take::no_next_frame_before_take,
        take::other_connections_go_on_while_a_body_waits, take::bodies_of_any_length_land_anywhere;
    always: flow::a_full_connection_refuses_and_loses_nothing, flow::a_batch_is_accepted_in_part,
        flow::a_full_connection_does_not_block_others, flow::both_directions_at_once, flow::ping_pong;
    always: close::everything_arrives_before_closed, close::unread_frames_do_not_hurt_a_close,
        close::both_sides_close, close::a_closed_connection_swallows_posts, close::close_twice_is_harmless,
        close::a_dropped_port_is_noticed, close::drop_with_traffic_lets_memory_go,
        close::closing_one_leaves_the_others;
    real_time: wait::arm_says_no_when_work_is_there, wait::a_sleeper_wakes_for_a_frame,
        wait::a_sleeper_wakes_for_connections, wait::a_sleeper_wakes_for_room, wait::a_sleeper_wakes_for_down,
        wait::no_wake_up_is_lost, wait::an_idle_port_does_not_spin;
    has_rma: rma::reads_and_writes_move_the_bytes, rma::outside_is_refused, rma::rights_are_kept,
        rma::a_revoked_exposure_is_refused, rma::a_guessed_key_is_refused, rma::a_buffer_can_be_read_for_a_transfer,
        rma::only_windows_can_be_written, rma::many_operations_end_once, rma::small_writes_within_the_call,
        rma::a_frame_after_a_write_finds_it_there,
        rma::a_dead_connection_fails_operations, rma::operations_let_memory_go;
    has_victim: death::a_killed_peer_goes_down, death::a_killed_peer_can_be_replaced;
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = super::CASES.iter().map(|c| c.name).collect();
        names.sort_unstable();
        let n = names.len();
        names.dedup();
        assert_eq!(names.len(), n);
    }
}
