#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    metricbus_fuzz::bounded("pulse", bytes);
    metricbus::nats::fuzzing::pulse(bytes);
});
