//! All functions in one place, so that a program which shares its bus has them all in it.

use crate::*;

struct Export(#[allow(dead_code)] *const ());

// SAFETY: the address of a function, which nobody follows.
unsafe impl Sync for Export {}

static EXPORTS: [Export; 52] = [
    Export(mb_last_error as *const ()),
    Export(mb_abi_version as *const ()),
    Export(mb_bus_new as *const ()),
    Export(mb_bus_clone as *const ()),
    Export(mb_bus_scope as *const ()),
    Export(mb_bus_free as *const ()),
    Export(mb_bus_remove as *const ()),
    Export(mb_bus_value as *const ()),
    Export(mb_bus_text as *const ()),
    Export(mb_text_free as *const ()),
    Export(mb_counter_new as *const ()),
    Export(mb_counter_clone as *const ()),
    Export(mb_counter_free as *const ()),
    Export(mb_counter_inc as *const ()),
    Export(mb_counter_inc_by as *const ()),
    Export(mb_counter_get as *const ()),
    Export(mb_counter_family_new as *const ()),
    Export(mb_counter_family_with as *const ()),
    Export(mb_counter_family_remove as *const ()),
    Export(mb_counter_family_free as *const ()),
    Export(mb_gauge_new as *const ()),
    Export(mb_gauge_clone as *const ()),
    Export(mb_gauge_free as *const ()),
    Export(mb_gauge_set as *const ()),
    Export(mb_gauge_add as *const ()),
    Export(mb_gauge_get as *const ()),
    Export(mb_gauge_family_new as *const ()),
    Export(mb_gauge_family_with as *const ()),
    Export(mb_gauge_family_remove as *const ()),
    Export(mb_gauge_family_free as *const ()),
    Export(mb_histogram_new as *const ()),
    Export(mb_histogram_clone as *const ()),
    Export(mb_histogram_free as *const ()),
    Export(mb_histogram_observe as *const ()),
    Export(mb_histogram_get as *const ()),
    Export(mb_histogram_family_new as *const ()),
    Export(mb_histogram_family_with as *const ()),
    Export(mb_histogram_family_remove as *const ()),
    Export(mb_histogram_family_free as *const ()),
    Export(mb_on_threshold as *const ()),
    Export(mb_on_delta as *const ()),
    Export(mb_on_change as *const ()),
    Export(mb_subscription_read as *const ()),
    Export(mb_subscription_free as *const ()),
    Export(mb_subscription_join as *const ()),
    Export(mb_subscription_forget as *const ()),
    Export(mb_window_open as *const ()),
    Export(mb_window_read as *const ()),
    Export(mb_window_free as *const ()),
    Export(mb_serve as *const ()),
    Export(mb_server_address as *const ()),
    Export(mb_server_free as *const ()),
];

/// A linker takes from an archive what is asked for. Whoever shares a bus asks for everything.
pub(crate) fn keep() {
    std::hint::black_box(&EXPORTS);
}
