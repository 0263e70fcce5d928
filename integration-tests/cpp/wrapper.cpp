// What metricbus.hpp promises. Prints nothing and returns 0 if it keeps it.
#include "metricbus.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <iostream>
#include <thread>
#include <type_traits>

using namespace metricbus;
using namespace std::chrono_literals;

#define WANT(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::cerr << __FILE__ << ':' << __LINE__ << ": " << #condition << '\n';                                    \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

template <class F> std::int32_t code_of(F &&f) {
    try {
        f();
    } catch (const error &e) {
        WANT(e.what()[0] != '\0');
        return e.code();
    }
    return MB_OK;
}

// Objects can be moved, and not copied.
template <class T> constexpr bool moves_only =
    std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> && !std::is_copy_constructible_v<T> &&
    !std::is_copy_assignable_v<T>;
static_assert(moves_only<bus> && moves_only<counter> && moves_only<gauge> && moves_only<histogram>);
static_assert(moves_only<family<counter>> && moves_only<subscription> && moves_only<window> && moves_only<server>);

// Whole numbers are wanted as such: any integer, and nothing with a fraction.
template <class T> using inc_of = decltype(std::declval<const counter &>().inc(std::declval<T>()));
template <class T> using series_max_of = decltype(std::declval<desc &>().series_max(std::declval<T>()));
template <class T> using capacity_of = decltype(std::declval<threshold &>().capacity(std::declval<T>()));
template <template <class> class Call, class T, class = void> constexpr bool compiles = false;
template <template <class> class Call, class T> constexpr bool compiles<Call, T, std::void_t<Call<T>>> = true;
template <template <class> class Call, class... T> constexpr bool all_compile = (compiles<Call, T> && ...);
template <template <class> class Call, class... T> constexpr bool none_compiles = (!compiles<Call, T> && ...);
enum plain_enum { few = 3 };
enum class strict_enum { few = 3 };
static_assert(all_compile<inc_of, int, unsigned, short, char, bool, long, long long, std::size_t, std::uint64_t, plain_enum>);
static_assert(none_compiles<inc_of, float, double, long double, std::string, const char *, strict_enum>);
static_assert(all_compile<series_max_of, int, std::size_t> && none_compiles<series_max_of, float, double>);
static_assert(all_compile<capacity_of, int, std::size_t> && none_compiles<capacity_of, float, double>);

static void metrics() {
    bus b;
    auto jobs = b.counter("jobs_total", "Jobs.");
    jobs.inc();
    jobs.inc(4);
    auto same = b.counter("jobs_total", "Jobs.");
    auto other = jobs.clone();
    other.inc();
    WANT(same.get() == 6);

    auto moved_to = std::move(jobs);
    moved_to.inc();
    WANT(moved_to.get() == 7);
    WANT(code_of([&] { jobs.inc(); }) == MB_ERROR_POINTER); // NOLINT: what was moved from throws
    same = std::move(moved_to);
    same = std::move(same);
    WANT(same.get() == 7);

    // A counter never goes down, whatever type the amount has.
    WANT(code_of([&] { same.inc(-1); }) == MB_ERROR_VALUE);
    WANT(code_of([&] { same.inc(std::int8_t(-1)); }) == MB_ERROR_VALUE);
    WANT(code_of([&] { same.inc(INT64_MIN); }) == MB_ERROR_VALUE);
    WANT(same.get() == 7);
    same.inc(0);
    same.inc(few);
    same.inc(5u);
    same.inc(std::uint64_t(1) << 40);
    WANT(same.get() == 15 + (std::uint64_t(1) << 40));
    auto all = b.counter("all_total", "All.");
    all.inc(UINT64_MAX);
    WANT(all.get() == UINT64_MAX);
    try {
        same.inc(-3);
    } catch (const error &e) {
        WANT(e.what() == std::string("inc(-3): a number from 0 to 18446744073709551615 is wanted"));
    }
    WANT(code_of([] { desc("jobs", "Jobs.").series_max(-1); }) == MB_ERROR_VALUE);
    WANT(code_of([] { threshold::above(1).capacity(-1L); }) == MB_ERROR_VALUE);
    auto few_only = b.family<counter>(desc("few_total", "Few.").label_names({"n"}).series_max(1));
    few_only.with({"a"}).inc(2);
    few_only.with({"b"}).inc(3);
    WANT(b.text().find("few_total{n=\"b\"}") == std::string::npos);

    auto depth = b.gauge(desc("depth", "Depth.").label("queue", "\xc3\xa9 \"quoted\"\n"));
    WANT(!depth.get() && !b.value("depth"));
    WANT(b.text().find("depth{") == std::string::npos);
    WANT(b.gauge(desc("begun", "Begun.").initial(0)).get() == 0.0);
    WANT(code_of([&] { b.counter(desc("begun_total", "Begun.").initial(0)); }) == MB_ERROR_DECLARE);
    depth.set(3);
    depth.inc();
    depth.sub(1.5);
    WANT(depth.get() == 2.5);

    auto latency = b.histogram(desc("latency_seconds", "Latency.").unit("seconds").bounds({0.1, 1}));
    latency.observe(50ms);
    latency.observe(2);
    WANT(latency.count() == 2 && latency.sum() == 2.05);
    WANT(b.text().find("latency_seconds_bucket{le=\"0.1\"} 1\n") != std::string::npos);

    auto requests = b.family<counter>(desc("requests_total", "Requests.").label_names({"method", "code"}));
    requests.with({"GET", "200"}).inc();
    requests.with(std::vector<std::string>{"GET", "200"}).inc();
    WANT(b.value("requests_total{code=\"200\"}") == 2);
    WANT(requests.remove({"GET", "200"}) && !requests.remove({"GET", "200"}));

    WANT(code_of([&] { requests.with({"GET"}); }) == MB_ERROR_LABELS);
    WANT(code_of([&] { b.gauge("jobs_total", ""); }) == MB_ERROR_DECLARE);
    WANT(code_of([&] { b.gauge("\xff", ""); }) == MB_ERROR_UTF8);
    WANT(code_of([&] { b.gauge("no \"name", ""); }) == MB_ERROR_DECLARE);
    WANT(code_of([&] { b.value("nothing"); }) == MB_ERROR_VALUE);
    WANT(b.remove("depth") == 1);
}

static void callbacks() {
    bus b;
    auto usage = b.gauge("usage", "Usage.");
    std::promise<std::string> raised, cleared;
    {
        auto subscription = b.on_threshold("usage", threshold::above(0.9).clear_below(0.8), [&](const crossing &c) {
            (c.raised ? raised : cleared).set_value(std::string(c.series) + ' ' + std::to_string(c.epoch));
        });
        usage.set(0.95);
        usage.set(0.85);
        usage.set(0.5);
        WANT(raised.get_future().get() == "usage 1");
        WANT(cleared.get_future().get() == "usage 2");
        WANT(subscription.stats().series_matched == 1);
    }
    // The callback is gone: this would set the promise again.
    usage.set(0.95);

    // It is held until the subscription has ended, and no longer.
    auto held = std::make_shared<int>(0);
    {
        auto subscription = b.on_change("usage", [held](const changed &) {});
        WANT(held.use_count() == 2);
    }
    WANT(held.use_count() == 1);
    WANT(code_of([&] { (void)b.on_change("usage{", [held](const changed &) {}); }) == MB_ERROR_SELECTOR);
    WANT(held.use_count() == 1);

    WANT(code_of([&] { (void)b.on_change("usage", nullptr); }) == MB_ERROR_POINTER);

    std::promise<double> by;
    usage.set(1);
    {
        auto subscription = b.on_delta("usage", 10, [&](const moved &m) { by.set_value(m.to - m.from); });
        usage.set(5);
        usage.set(11);
        WANT(by.get_future().get() == 10);
    }

    // One that throws is detached after three.
    std::atomic<int> thrown = 0;
    auto throws = std::make_shared<int>(0);
    auto subscription = b.on_threshold("usage", threshold::above(100), [&thrown, throws](const crossing &) {
        ++thrown;
        throw std::runtime_error("no");
    });
    for (int i = 0; i < 3; ++i) {
        usage.set(200);
        usage.set(0);
    }
    while (throws.use_count() > 1) {
        std::this_thread::yield();
    }
    WANT(thrown == 3);
    WANT(subscription.stats().failed == 3 && subscription.stats().detached == 1);
    WANT(code_of([&] {
             (void)b.on_threshold("usage", threshold::above(1).clear_below(2), [](const crossing &) {});
         }) == MB_ERROR_SUBSCRIBE);
}

// A subscription that ends while its callback is running waits for it.
static void end_waits() {
    bus b;
    auto depth = b.gauge("depth", "Depth.");
    for (int round = 0; round < 50; ++round) {
        std::promise<void> inside;
        bool over = false; // not atomic: the end of the subscription comes after the callback
        {
            auto subscription = b.on_change("depth", [&](const changed &) {
                inside.set_value();
                std::this_thread::yield();
                over = true;
            });
            depth.set(round + 1);
            inside.get_future().get();
        }
        WANT(over);
    }

    // In its own callback it does not.
    std::promise<void> ended;
    std::optional<subscription> own;
    std::promise<void> stored;
    auto is_stored = stored.get_future().share();
    own = b.on_change("depth", [&, is_stored](const changed &) {
        is_stored.get();
        own->end();
        ended.set_value();
    });
    stored.set_value();
    depth.set(-1);
    ended.get_future().get();
}

// Ending never waits inside a callback: not for one whose data owns the subscription of the callback that ends it ...
static void a_callback_ends_what_owns_it() {
    bus b;
    auto depth = b.gauge("depth", "Depth.");
    std::promise<void> over;
    auto other = std::make_shared<std::optional<subscription>>();
    auto own = std::make_shared<std::optional<subscription>>();
    *own = b.on_threshold("depth", threshold::above(1), [&over, other](const crossing &) {
        other->reset();
        over.set_value();
    });
    *other = b.on_threshold("depth", threshold::above(1000), [own](const crossing &) {});
    own.reset();
    depth.set(2);
    over.get_future().get();
}

// ... and not for one that is about to end it.
static void callbacks_end_each_other() {
    bus b;
    auto depth = b.gauge("depth", "Depth.");
    std::atomic<int> inside = 0, refused = 0, over = 0;
    std::optional<subscription> one, two;
    auto ends = [&](std::optional<subscription> &other) {
        return [&](const crossing &) {
            ++inside;
            while (inside < 2) {
                std::this_thread::yield();
            }
            // While the other is in its callback, too, it is told that it has not waited.
            refused += !other->end_within(1h);
            ++over;
        };
    };
    one = b.on_threshold("depth", threshold::above(1), ends(two));
    two = b.on_threshold("depth", threshold::above(1), ends(one));
    depth.set(2);
    while (over < 2) {
        std::this_thread::yield();
    }
    WANT(refused >= 1);
}

static void threads() {
    bus b;
    auto jobs = b.counter("jobs_total", "Jobs.");
    auto by_worker = b.family<counter>(desc("by_worker_total", "Jobs.").label_names({"worker"}));
    std::atomic<int> crossings = 0;
    auto subscription = b.on_threshold("jobs_total", threshold::at_least(2000), [&](const crossing &) { ++crossings; });
    std::vector<std::thread> all;
    for (int i = 0; i < 4; ++i) {
        all.emplace_back([&, i] {
            for (int n = 0; n < 1000; ++n) {
                jobs.inc();
                by_worker.with({std::to_string(i)}).inc();
            }
        });
    }
    for (auto &one : all) {
        one.join();
    }
    WANT(jobs.get() == 4000);
    WANT(b.value("by_worker_total{worker=\"3\"}") == 1000);
    while (crossings == 0) {
        std::this_thread::yield();
    }
    WANT(crossings == 1);
}

// What the server at 127.0.0.1 answers.
static std::string scrape(const std::string &address) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(address.substr(address.find(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    WANT(connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof to) == 0);
    const std::string request = "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    WANT(write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size()));
    std::string answer;
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) {
        answer.append(buffer, static_cast<std::size_t>(n));
    }
    close(fd);
    return answer;
}

static void windows_and_server() {
    bus b;
    auto size = b.histogram("size", "Size.");
    auto w = b.window("size", 60s);
    WANT(!w.stats().avg.has_value() && !w.quantile(0.5).has_value());
    for (int i = 1; i <= 1000; ++i) {
        size.observe(i);
    }
    auto p99 = w.quantile(0.99);
    WANT(p99.has_value() && std::abs(*p99 - 990) < 0.011 * 990);
    WANT(w.stats().count == 1000 && w.stats().max == 1000.0);
    WANT(code_of([&] { w.quantile(2); }) == MB_ERROR_VALUE);

    auto s = b.serve("127.0.0.1:0");
    WANT(s.address().rfind("127.0.0.1:", 0) == 0);
    WANT(code_of([&] { (void)b.serve(s.address()); }) == MB_ERROR_SERVE);
    auto answer = scrape(s.address());
    WANT(answer.find("\nsize_count 1000\n") != std::string::npos);
    WANT(answer.find("\nprocess_cpu_seconds_total ") != std::string::npos);
}

int main() {
    metrics();
    callbacks();
    end_waits();
    a_callback_ends_what_owns_it();
    callbacks_end_each_other();
    threads();
    windows_and_server();
    return 0;
}
