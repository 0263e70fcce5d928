#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    metricbus_fuzz::bounded("rule", bytes);
    metricbus::nats::fuzzing::rule(bytes);
});
