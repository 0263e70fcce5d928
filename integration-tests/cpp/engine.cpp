// C++ code that a Rust program loads and hands its bus to. It is linked with nothing: the functions are the program's.
#include "metricbus.hpp"

#include <iostream>

namespace {

std::unique_ptr<metricbus::gauge> usage;
std::unique_ptr<metricbus::subscription> on_orders;

} // namespace

// Takes over the handle.
extern "C" MB_EXPORT int32_t engine_start(mb_bus *shared) noexcept try {
    metricbus::bus bus(shared);
    usage = std::make_unique<metricbus::gauge>(bus.gauge("engine_usage_ratio", "Share in use."));
    // Orders of the Rust side: so much is to be used.
    on_orders = std::make_unique<metricbus::subscription>(
        bus.on_change("orders", [](const metricbus::changed &order) { usage->set(order.value / 100); }));
    return MB_OK;
} catch (const metricbus::error &error) {
    std::cerr << error.what() << std::endl;
    return error.code();
}

extern "C" MB_EXPORT void engine_stop() noexcept {
    on_orders.reset();
    usage.reset();
}
