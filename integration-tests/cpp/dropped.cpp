// Drops what ends with its object at once. A compiler that is asked for warnings has one for each.
#include "metricbus.hpp"

int main() {
    metricbus::bus bus;
    bus.on_threshold("usage", metricbus::threshold::above(0.9), [](const metricbus::crossing &) {});
    bus.on_delta("usage", 1, [](const metricbus::moved &) {});
    bus.on_change("usage", [](const metricbus::changed &) {});
    bus.window("usage", std::chrono::seconds(30));
    bus.serve("127.0.0.1:0");
}
