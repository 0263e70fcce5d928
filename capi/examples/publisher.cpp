// Publishes into a bus from C++, and reacts to it.
#include "metricbus.hpp"

#include <condition_variable>
#include <iostream>
#include <mutex>

int main() try {
    using namespace std::chrono_literals;

    metricbus::bus bus;
    auto worker = bus.scope("engine_", {{"worker", "7"}});

    auto usage = worker.gauge("kv_usage_ratio", "Share of KV blocks in use.");
    auto requests =
        worker.family<metricbus::counter>(metricbus::desc("requests_total", "Requests served.").label_names({"method"}));
    auto generate = requests.with({"generate"});
    auto ttft = worker.histogram(
        metricbus::desc("ttft_seconds", "Time to the first token.").unit("seconds").bounds({0.05, 0.1, 0.5, 1, 5}));
    auto window = bus.window("engine_ttft_seconds", 10s);

    std::mutex mutex;
    std::condition_variable bell;
    int crossings = 0;
    // Named after what it uses: it is destroyed first, and then no callback runs any more.
    auto subscription = bus.on_threshold("engine_kv_usage_ratio", metricbus::threshold::above(0.9).clear_below(0.8),
                                         [&](const metricbus::crossing &c) {
                                             std::cout << c.series << (c.raised ? " raised" : " cleared") << " at "
                                                       << c.value << '\n';
                                             std::lock_guard<std::mutex> lock(mutex);
                                             ++crossings;
                                             bell.notify_one();
                                         });

    for (int i = 1; i <= 100; ++i) {
        generate.inc();
        ttft.observe(std::chrono::milliseconds(10 * i));
    }
    usage.set(0.95);
    usage.set(0.5);

    std::unique_lock<std::mutex> lock(mutex);
    bell.wait(lock, [&] { return crossings == 2; });
    lock.unlock();

    std::cout << "p99 of the time to the first token: " << window.quantile(0.99).value_or(-1) << " s\n" << bus.text();

    try {
        bus.gauge("engine_requests_total", "Something else.");
    } catch (const metricbus::error &error) {
        std::cout << "refused: " << error.what() << '\n';
    }
    return 0;
} catch (const std::exception &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
