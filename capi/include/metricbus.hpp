// metricbus.hpp: metrics that react, for C++17. Header-only, over metricbus.h.
//
//     metricbus::bus bus;
//     auto usage = bus.gauge("kv_usage_ratio", "Share of KV blocks in use.");
//     auto subscription = bus.on_threshold("kv_usage_ratio", metricbus::threshold::above(0.9).clear_below(0.8),
//                                          [](const metricbus::crossing &c) { std::cout << c.series << '\n'; });
//     usage.set(0.95);
//
// Objects own what they stand for, and can be moved but not copied; `clone()` gives another handle to the same metric. What
// has been moved from can only be destroyed or assigned to; using it throws. Functions throw metricbus::error with the
// library's words. All may be called from any thread, and an object by several threads at once, but for moving and
// destroying it.
//
// Callbacks run on threads of the dispatcher, one at a time per subscription. One that throws has failed: that is counted,
// and after three in a row the subscription is detached.
//
// Whoever writes a backend derives from metricbus::plugin::backend, at the end of this file.

#ifndef METRICBUS_HPP
#define METRICBUS_HPP

#include "metricbus.h"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace metricbus {

// Why a call failed. `code()` is one of MB_ERROR_…
class error : public std::runtime_error {
  public:
    error(std::int32_t code, const char *what) : std::runtime_error(what), code_(code) {}
    std::int32_t code() const noexcept { return code_; }

  private:
    std::int32_t code_;
};

// A name and a value.
using label = std::pair<std::string_view, std::string_view>;

namespace detail {

inline void check(std::int32_t status) {
    if (status != MB_OK) {
        throw error(status, mb_last_error());
    }
}

// Whether a library of this version can serve a program that was built with such a header.
inline bool compatible(std::uint32_t library, std::uint32_t major, std::uint32_t minor) noexcept {
    return library >> 16 == major && (library & 0xffff) >= minor;
}

inline mb_str str(std::string_view text) noexcept { return mb_str{text.data(), text.size()}; }

inline std::string_view view(mb_str text) noexcept {
    if (text.len == MB_NUL) {
        return text.ptr == nullptr ? std::string_view() : std::string_view(text.ptr);
    }
    return std::string_view(text.ptr, text.len);
}

template <class Labels> std::vector<mb_label> label_list(const Labels &labels) {
    std::vector<mb_label> list;
    list.reserve(labels.size());
    for (const auto &one : labels) {
        list.push_back(mb_label{str(one.first), str(one.second)});
    }
    return list;
}

template <class Texts> std::vector<mb_str> str_list(const Texts &texts) {
    std::vector<mb_str> list;
    list.reserve(texts.size());
    for (const auto &one : texts) {
        list.push_back(str(one));
    }
    return list;
}

// A handle of the C interface, given back once.
template <class T, void (*Free)(T *)> class handle {
  public:
    handle() noexcept = default;
    explicit handle(T *raw) noexcept : raw_(raw) {}
    handle(handle &&other) noexcept : raw_(other.release()) {}
    handle &operator=(handle &&other) noexcept {
        if (this != &other) {
            Free(std::exchange(raw_, other.release()));
        }
        return *this;
    }
    ~handle() { Free(raw_); }

    T *get() const noexcept { return raw_; }
    T *release() noexcept { return std::exchange(raw_, nullptr); }

  private:
    T *raw_ = nullptr;
};

// Nanoseconds for the C interface; what is negative is none.
template <class Rep, class Period> std::uint64_t nanos(std::chrono::duration<Rep, Period> duration) {
    auto seconds = std::chrono::duration<long double>(duration).count();
    if (!(seconds > 0)) {
        return 0;
    }
    auto nanos = seconds * 1e9L;
    return nanos >= 18446744073709551615.0L ? UINT64_MAX : static_cast<std::uint64_t>(nanos);
}

// What a number is after the usual promotions.
template <class T> using promoted = decltype(+std::declval<T>());

// For overloads that take any integer, so that none is converted unseen, and for those that are deleted.
template <class T>
using if_whole = std::enable_if_t<std::is_integral_v<promoted<T>> && sizeof(promoted<T>) <= sizeof(std::uint64_t), int>;
template <class T> using if_real = std::enable_if_t<std::is_floating_point_v<promoted<T>>, int>;

[[noreturn]] inline void out_of_range(const char *function, const std::string &given, const std::string &most) {
    std::string words = std::string(function) + '(' + given + "): a number from 0 to " + most + " is wanted";
    throw error(MB_ERROR_VALUE, words.c_str());
}

// An integer for the C interface; one that doesn't fit is refused, and not wrapped.
template <class To, class T> To whole(const char *function, T given) {
    constexpr To most = std::numeric_limits<To>::max();
    const auto number = +given;
    if constexpr (std::is_signed_v<promoted<T>>) {
        if (number < 0) {
            out_of_range(function, std::to_string(number), std::to_string(most));
        }
    }
    if constexpr (sizeof(promoted<T>) > sizeof(To)) {
        if (static_cast<std::make_unsigned_t<promoted<T>>>(number) > most) {
            out_of_range(function, std::to_string(number), std::to_string(most));
        }
    }
    return static_cast<To>(number);
}

} // namespace detail

// What a metric is declared as.
//
//     bus.histogram(metricbus::desc("ttft_seconds", "Time to the first token.").unit("seconds").bounds({0.1, 1, 10}));
class desc {
  public:
    desc(std::string_view name, std::string_view help) : name_(name), help_(help) {}

    // A base unit, in which the name must end.
    desc &unit(std::string_view unit) {
        unit_ = unit;
        return *this;
    }
    // A label with its value, for all series of the declaration.
    desc &label(std::string_view name, std::string_view value) {
        labels_.emplace_back(name, value);
        return *this;
    }
    // Of a family: labels whose values are given per child.
    desc &label_names(std::initializer_list<std::string_view> names) {
        names_.insert(names_.end(), names.begin(), names.end());
        return *this;
    }
    // Upper bounds of a histogram's buckets, increasing.
    desc &bounds(std::vector<double> bounds) {
        bounds_ = std::move(bounds);
        return *this;
    }
    // How many series a family may have. A negative number throws.
    template <class T, detail::if_whole<T> = 0> desc &series_max(T series_max) {
        series_max_ = detail::whole<std::size_t>("series_max", series_max);
        return *this;
    }
    template <class T, detail::if_real<T> = 0> desc &series_max(T) = delete;

    // Calls `f` with the description for the C interface, which lives as long as the call.
    template <class F> void with_raw(F &&f) const {
        auto labels = detail::label_list(labels_);
        auto names = detail::str_list(names_);
        mb_desc raw{};
        raw.size = sizeof raw;
        raw.name = detail::str(name_);
        raw.help = detail::str(help_);
        raw.unit = detail::str(unit_);
        raw.labels = labels.data();
        raw.labels_len = labels.size();
        raw.label_names = names.data();
        raw.label_names_len = names.size();
        raw.bounds = bounds_.data();
        raw.bounds_len = bounds_.size();
        raw.series_max = series_max_;
        f(&raw);
    }

  private:
    std::string name_;
    std::string help_;
    std::string unit_;
    std::vector<std::pair<std::string, std::string>> labels_;
    std::vector<std::string> names_;
    std::vector<double> bounds_;
    std::size_t series_max_ = 0;
};

// A value that only grows.
class counter {
  public:
    using raw_type = mb_counter;
    explicit counter(mb_counter *owned) noexcept : handle_(owned) {}

    void inc() const { detail::check(mb_counter_inc(handle_.get())); }
    // By any integer. A negative one throws, and counts nothing.
    template <class T, detail::if_whole<T> = 0> void inc(T amount) const {
        detail::check(mb_counter_inc_by(handle_.get(), detail::whole<std::uint64_t>("inc", amount)));
    }
    // It counts whole things.
    template <class T, detail::if_real<T> = 0> void inc(T) const = delete;
    std::uint64_t get() const {
        std::uint64_t value = 0;
        detail::check(mb_counter_get(handle_.get(), &value));
        return value;
    }
    counter clone() const {
        mb_counter *other = nullptr;
        detail::check(mb_counter_clone(handle_.get(), &other));
        return counter(other);
    }
    mb_counter *raw() const noexcept { return handle_.get(); }

  private:
    detail::handle<mb_counter, mb_counter_free> handle_;
};

// A value that goes up and down.
class gauge {
  public:
    using raw_type = mb_gauge;
    explicit gauge(mb_gauge *owned) noexcept : handle_(owned) {}

    void set(double value) const { detail::check(mb_gauge_set(handle_.get(), value)); }
    void add(double amount) const { detail::check(mb_gauge_add(handle_.get(), amount)); }
    void sub(double amount) const { add(-amount); }
    void inc() const { add(1); }
    void dec() const { add(-1); }
    double get() const {
        double value = 0;
        detail::check(mb_gauge_get(handle_.get(), &value));
        return value;
    }
    gauge clone() const {
        mb_gauge *other = nullptr;
        detail::check(mb_gauge_clone(handle_.get(), &other));
        return gauge(other);
    }
    mb_gauge *raw() const noexcept { return handle_.get(); }

  private:
    detail::handle<mb_gauge, mb_gauge_free> handle_;
};

// Observations counted in buckets.
class histogram {
  public:
    using raw_type = mb_histogram;
    explicit histogram(mb_histogram *owned) noexcept : handle_(owned) {}

    void observe(double value) const { detail::check(mb_histogram_observe(handle_.get(), value)); }
    // A duration in seconds.
    template <class Rep, class Period> void observe(std::chrono::duration<Rep, Period> duration) const {
        observe(std::chrono::duration<double>(duration).count());
    }
    std::uint64_t count() const {
        std::uint64_t count = 0;
        detail::check(mb_histogram_get(handle_.get(), &count, nullptr));
        return count;
    }
    double sum() const {
        double sum = 0;
        detail::check(mb_histogram_get(handle_.get(), nullptr, &sum));
        return sum;
    }
    histogram clone() const {
        mb_histogram *other = nullptr;
        detail::check(mb_histogram_clone(handle_.get(), &other));
        return histogram(other);
    }
    mb_histogram *raw() const noexcept { return handle_.get(); }

  private:
    detail::handle<mb_histogram, mb_histogram_free> handle_;
};

namespace detail {

template <class Metric> struct calls;

template <> struct calls<counter> {
    using family = mb_counter_family;
    static constexpr auto make = mb_counter_new;
    static constexpr auto make_family = mb_counter_family_new;
    static constexpr auto with = mb_counter_family_with;
    static constexpr auto remove = mb_counter_family_remove;
    static void free(family *f) { mb_counter_family_free(f); }
};

template <> struct calls<gauge> {
    using family = mb_gauge_family;
    static constexpr auto make = mb_gauge_new;
    static constexpr auto make_family = mb_gauge_family_new;
    static constexpr auto with = mb_gauge_family_with;
    static constexpr auto remove = mb_gauge_family_remove;
    static void free(family *f) { mb_gauge_family_free(f); }
};

template <> struct calls<histogram> {
    using family = mb_histogram_family;
    static constexpr auto make = mb_histogram_new;
    static constexpr auto make_family = mb_histogram_family_new;
    static constexpr auto with = mb_histogram_family_with;
    static constexpr auto remove = mb_histogram_family_remove;
    static void free(family *f) { mb_histogram_family_free(f); }
};

} // namespace detail

// Metrics of one name, that differ in the values of their labels.
//
//     auto requests = bus.family<metricbus::counter>(desc("requests_total", "Requests.").label_names({"method"}));
//     auto get = requests.with({"GET"}); // worth keeping
template <class Metric> class family {
    using calls = detail::calls<Metric>;

  public:
    explicit family(typename calls::family *owned) noexcept : handle_(owned) {}

    // The child with these values, in the order of the names; made where there is none.
    Metric with(std::initializer_list<std::string_view> values) const { return find(detail::str_list(values)); }
    Metric with(const std::vector<std::string> &values) const { return find(detail::str_list(values)); }

    // Removes it, and says whether there was one.
    bool remove(std::initializer_list<std::string_view> values) const {
        auto list = detail::str_list(values);
        bool removed = false;
        detail::check(calls::remove(handle_.get(), list.data(), list.size(), &removed));
        return removed;
    }

  private:
    Metric find(const std::vector<mb_str> &values) const {
        typename Metric::raw_type *child = nullptr;
        detail::check(calls::with(handle_.get(), values.data(), values.size(), &child));
        return Metric(child);
    }

    detail::handle<typename calls::family, calls::free> handle_;
};

// A bound, and the bound at which it is over again. `above` is >, `at_least` is ≥, `below` is <, `at_most` is ≤.
class threshold {
  public:
    static threshold above(double bound) { return threshold(MB_ABOVE, bound); }
    static threshold at_least(double bound) { return threshold(MB_AT_LEAST, bound); }
    static threshold below(double bound) { return threshold(MB_BELOW, bound); }
    static threshold at_most(double bound) { return threshold(MB_AT_MOST, bound); }

    threshold &clear_above(double bound) { return clear(MB_ABOVE, bound); }
    threshold &clear_at_least(double bound) { return clear(MB_AT_LEAST, bound); }
    threshold &clear_below(double bound) { return clear(MB_BELOW, bound); }
    threshold &clear_at_most(double bound) { return clear(MB_AT_MOST, bound); }

    // Whether to say at once of what is raised already.
    threshold &initial(bool wanted) {
        raw_.no_initial = !wanted;
        return *this;
    }
    // How many events may wait for the callback; when there are more, the oldest goes that a later one of its series supersedes. A negative number throws.
    template <class T, detail::if_whole<T> = 0> threshold &capacity(T events) {
        raw_.capacity = detail::whole<decltype(raw_.capacity)>("capacity", events);
        return *this;
    }
    template <class T, detail::if_real<T> = 0> threshold &capacity(T) = delete;

    const mb_threshold *raw() const noexcept { return &raw_; }

  private:
    threshold(std::int32_t word, double bound) {
        raw_.size = sizeof raw_;
        raw_.raise = word;
        raw_.raise_bound = bound;
    }
    threshold &clear(std::int32_t word, double bound) {
        raw_.clear = word;
        raw_.clear_bound = bound;
        return *this;
    }

    mb_threshold raw_{};
};

// Why a crossing is told now.
enum class cause : std::int32_t {
    crossing = MB_CAUSE_CROSSING, // a mutation crossed the bound
    initial = MB_CAUSE_INITIAL,   // it held already
    removed = MB_CAUSE_REMOVED,   // the series was removed while raised
};

// A threshold was crossed. `series` is valid during the callback.
struct crossing {
    std::string_view series;
    bool raised;
    metricbus::cause cause;
    double value;
    std::uint64_t epoch;
    std::chrono::nanoseconds at;
};

// A value has moved by a delta or more. `series` is valid during the callback.
struct moved {
    std::string_view series;
    double from;
    double to;
    std::chrono::nanoseconds at;
};

// A value is not what it was. `series` is valid during the callback.
struct changed {
    std::string_view series;
    double value;
    std::chrono::nanoseconds at;
};

// A live subscription. Its destructor ends it and waits until the callback has returned, so that what the callback refers to
// may go away after it: hold no lock meanwhile that the callback wants. In a callback, its own or another's, it never waits:
// what the callback of another subscription refers to must not go away there. One that nobody keeps ends at once; `forget()`
// leaves it in place.
class [[nodiscard]] subscription {
  public:
    explicit subscription(mb_subscription *owned) noexcept : raw_(owned) {}
    subscription(subscription &&other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
    subscription &operator=(subscription &&other) noexcept {
        if (this != &other) {
            end();
            raw_ = std::exchange(other.raw_, nullptr);
        }
        return *this;
    }
    ~subscription() { end(); }

    // Ends it, and waits, unless this is a callback.
    void end() noexcept { mb_subscription_join(std::exchange(raw_, nullptr), UINT64_MAX); }
    // Ends it, and waits for so long at most, in a callback not at all; whether the callback has returned. If not, it goes on,
    // with what it refers to.
    template <class Rep, class Period> bool end_within(std::chrono::duration<Rep, Period> timeout) noexcept {
        return mb_subscription_join(std::exchange(raw_, nullptr), detail::nanos(timeout)) == MB_OK;
    }
    // Leaves it in place for as long as the bus lives.
    void forget() { detail::check(mb_subscription_forget(std::exchange(raw_, nullptr))); }

    mb_subscription_stats stats() const {
        mb_subscription_stats stats{};
        stats.size = sizeof stats;
        detail::check(mb_subscription_read(raw_, &stats));
        return stats;
    }

  private:
    mb_subscription *raw_ = nullptr;
};

// What a window has seen. What there is nothing to go by for is empty, and never 0 instead.
struct window_stats {
    std::chrono::nanoseconds width;
    double coverage;
    std::uint64_t sources;
    std::uint64_t stale;
    std::uint64_t count;
    std::optional<double> sum, avg, min, max, stddev, last, increase, rate;
    std::optional<double> age; // in seconds
};

// A sliding window over the series of a selector, for as long as it lives.
class [[nodiscard]] window {
  public:
    explicit window(mb_window *owned) noexcept : handle_(owned) {}

    window_stats stats() const {
        mb_window_stats raw{};
        raw.size = sizeof raw;
        detail::check(mb_window_read(handle_.get(), &raw, nullptr, 0, nullptr));
        return window_stats{std::chrono::nanoseconds(raw.width_ns),
                            raw.coverage,
                            raw.sources,
                            raw.stale,
                            raw.count,
                            maybe(raw.sum),
                            maybe(raw.avg),
                            maybe(raw.min),
                            maybe(raw.max),
                            maybe(raw.stddev),
                            maybe(raw.last),
                            maybe(raw.increase),
                            maybe(raw.rate),
                            maybe(raw.age)};
    }
    // 0.99 is the 99th percentile; off by at most 1.1 %.
    std::optional<double> quantile(double share) const {
        double quantile = 0;
        detail::check(mb_window_read(handle_.get(), nullptr, &share, 1, &quantile));
        return maybe(quantile);
    }

  private:
    static std::optional<double> maybe(double value) {
        return std::isnan(value) ? std::nullopt : std::optional<double>(value);
    }

    detail::handle<mb_window, mb_window_free> handle_;
};

// A server of /metrics, for as long as it lives.
class [[nodiscard]] server {
  public:
    explicit server(mb_server *owned) noexcept : handle_(owned) {}

    // Where it listens, with the port it was given.
    std::string address() const {
        const char *address = nullptr;
        detail::check(mb_server_address(handle_.get(), &address));
        return address;
    }

  private:
    detail::handle<mb_server, mb_server_free> handle_;
};

// A bus: metrics are declared on it, and whoever wants to hear of them subscribes to it.
class bus {
  public:
    // A new one. Throws where the library is too old for this header.
    bus() {
        if (!detail::compatible(mb_abi_version(), MB_ABI_MAJOR, MB_ABI_MINOR)) {
            throw error(MB_ERROR_UNSUPPORTED, "the metricbus library is of another version than metricbus.h");
        }
        mb_bus *raw = nullptr;
        detail::check(mb_bus_new(&raw));
        handle_ = decltype(handle_)(raw);
    }
    // Takes over a handle, such as one that a Rust program has shared.
    explicit bus(mb_bus *owned) noexcept : handle_(owned) {}

    bus clone() const {
        mb_bus *other = nullptr;
        detail::check(mb_bus_clone(handle_.get(), &other));
        return bus(other);
    }
    // The same bus, with a prefix and labels for all that is declared with it.
    bus scope(std::string_view prefix, std::initializer_list<label> labels = {}) const {
        auto list = detail::label_list(labels);
        mb_bus *scope = nullptr;
        detail::check(mb_bus_scope(handle_.get(), detail::str(prefix), list.data(), list.size(), &scope));
        return bus(scope);
    }

    metricbus::counter counter(const desc &desc) const { return declare<metricbus::counter>(desc); }
    metricbus::counter counter(std::string_view name, std::string_view help) const { return counter(desc(name, help)); }
    metricbus::gauge gauge(const desc &desc) const { return declare<metricbus::gauge>(desc); }
    metricbus::gauge gauge(std::string_view name, std::string_view help) const { return gauge(desc(name, help)); }
    metricbus::histogram histogram(const desc &desc) const { return declare<metricbus::histogram>(desc); }
    metricbus::histogram histogram(std::string_view name, std::string_view help) const {
        return histogram(desc(name, help));
    }
    template <class Metric> metricbus::family<Metric> family(const desc &desc) const {
        typename detail::calls<Metric>::family *family = nullptr;
        desc.with_raw([&](const mb_desc *raw) {
            detail::check(detail::calls<Metric>::make_family(handle_.get(), raw, &family));
        });
        return metricbus::family<Metric>(family);
    }

    // Calls `f` with each crossing of a threshold by one of the series, present or future, that the selector matches.
    subscription on_threshold(std::string_view selector, const threshold &threshold,
                              std::function<void(const crossing &)> f) const {
        using callback = std::function<void(const crossing &)>;
        not_empty(f);
        mb_subscription *made = nullptr;
        auto call = [](const mb_crossing *c, void *user) noexcept -> std::int32_t {
            return attempt([&] {
                (*static_cast<callback *>(user))(crossing{detail::view(c->series), c->state == MB_RAISED,
                                                          static_cast<cause>(c->cause), c->value, c->epoch,
                                                          std::chrono::nanoseconds(c->at_ns)});
            });
        };
        detail::check(mb_on_threshold(handle_.get(), detail::str(selector), threshold.raw(), call,
                                      new callback(std::move(f)), drop<callback>, &made));
        return subscription(made);
    }

    // Calls `f` when one of the series has moved by `delta` or more since it was last told.
    subscription on_delta(std::string_view selector, double delta, std::function<void(const moved &)> f) const {
        using callback = std::function<void(const moved &)>;
        not_empty(f);
        mb_subscription *made = nullptr;
        auto call = [](const mb_moved *m, void *user) noexcept -> std::int32_t {
            return attempt([&] {
                (*static_cast<callback *>(user))(
                    moved{detail::view(m->series), m->from, m->to, std::chrono::nanoseconds(m->at_ns)});
            });
        };
        detail::check(mb_on_delta(handle_.get(), detail::str(selector), delta, call, new callback(std::move(f)),
                                  drop<callback>, &made));
        return subscription(made);
    }

    // Calls `f` when one of the series has changed since it was last told.
    subscription on_change(std::string_view selector, std::function<void(const changed &)> f) const {
        using callback = std::function<void(const changed &)>;
        not_empty(f);
        mb_subscription *made = nullptr;
        auto call = [](const mb_changed *c, void *user) noexcept -> std::int32_t {
            return attempt([&] {
                (*static_cast<callback *>(user))(
                    changed{detail::view(c->series), c->value, std::chrono::nanoseconds(c->at_ns)});
            });
        };
        detail::check(mb_on_change(handle_.get(), detail::str(selector), call, new callback(std::move(f)),
                                   drop<callback>, &made));
        return subscription(made);
    }

    // A sliding window, at least 100 ms wide.
    template <class Rep, class Period>
    metricbus::window window(std::string_view selector, std::chrono::duration<Rep, Period> width) const {
        mb_window *window = nullptr;
        detail::check(mb_window_open(handle_.get(), detail::str(selector), detail::nanos(width), &window));
        return metricbus::window(window);
    }

    // The value of the one series that the selector matches.
    double value(std::string_view selector) const {
        double value = 0;
        detail::check(mb_bus_value(handle_.get(), detail::str(selector), &value));
        return value;
    }

    // Removes the series that the selector matches; how many there were.
    std::size_t remove(std::string_view selector) const {
        std::size_t removed = 0;
        detail::check(mb_bus_remove(handle_.get(), detail::str(selector), &removed));
        return removed;
    }

    // All metrics in Prometheus's text format.
    std::string text() const {
        char *raw = nullptr;
        std::size_t len = 0;
        detail::check(mb_bus_text(handle_.get(), &raw, &len));
        std::unique_ptr<char, void (*)(char *)> owned(raw, mb_text_free);
        return std::string(raw, len);
    }

    // Serves them over HTTP at host:port; port 0 is any that is free.
    server serve(std::string_view address) const {
        mb_server *made = nullptr;
        detail::check(mb_serve(handle_.get(), detail::str(address), &made));
        return server(made);
    }

    mb_bus *raw() const noexcept { return handle_.get(); }

  private:
    template <class Metric> Metric declare(const desc &desc) const {
        typename Metric::raw_type *metric = nullptr;
        desc.with_raw([&](const mb_desc *raw) {
            detail::check(detail::calls<Metric>::make(handle_.get(), raw, &metric));
        });
        return Metric(metric);
    }

    template <class F> static void not_empty(const F &f) {
        if (!f) {
            throw error(MB_ERROR_POINTER, "the callback is an empty function");
        }
    }

    // No exception may leave a callback.
    template <class F> static std::int32_t attempt(F &&f) noexcept {
        try {
            f();
            return 0;
        } catch (...) {
            return 1;
        }
    }
    template <class Callback> static void drop(void *user) noexcept { delete static_cast<Callback *>(user); }

    detail::handle<mb_bus, mb_bus_free> handle_;
};

// For whoever writes a library that is a backend. It needs this header, and nothing to link with.
//
//     class mine : public metricbus::plugin::backend {
//       public:
//         explicit mine(const metricbus::plugin::config &config);
//         std::unique_ptr<metricbus::plugin::series> declare(const metricbus::plugin::declared &series) override;
//     };
//     METRICBUS_BACKEND(mine, "mine")
//
// Compile it with `-shared -fPIC -fvisibility=hidden`. Without the last, static objects in inline functions of yours are one and
// the same in all libraries of the process that call them by the same name; those in here are not. Whatever throws has failed, and its words go to the program; nothing crosses the border.
namespace plugin {

// What a backend is set up with. Valid during the call.
struct config {
    std::string_view service;
    std::string_view prefix;
};

// A series that there is from now on. Valid during the call.
struct declared {
    std::string_view name;
    std::string_view help;
    std::string_view unit;
    std::int32_t kind; // MB_COUNTER, MB_GAUGE, MB_HISTOGRAM or MB_REAL_COUNTER
    std::vector<label> labels;
    std::vector<double> bounds; // of a histogram, without +Inf
};

// A series of a backend. Mutations come one at a time, from whichever thread makes them: they must not block, and must not
// call back into the bus. `get_value` may come at any time. What doesn't belong to the series' kind is never called.
class series {
  public:
    virtual ~series() = default;

    virtual void inc(std::uint64_t) { unexpected("inc"); }
    virtual void add(double) { unexpected("add"); }
    virtual void set(double) { unexpected("set"); }
    virtual void observe(double) { unexpected("observe"); }
    // Fills in what belongs to the kind: `whole`, `real`, or `sum` and the `buckets_len` elements of `buckets`.
    virtual void get_value(mb_value &value) const = 0;
    // It was removed, and should be shown no more.
    virtual void remove() {}

  private:
    [[noreturn]] static void unexpected(const char *what) {
        throw std::logic_error(std::string("this series takes no ") + what);
    }
};

// A backend. Its functions may be called by several threads at once.
class backend {
  public:
    virtual ~backend() = default;

    // Takes a series. Owned by the program from here on; destroyed when nobody holds it any more.
    virtual std::unique_ptr<series> declare(const declared &series) = 0;
    // Sends on what waits.
    virtual void flush(std::chrono::nanoseconds) {}
    // The last chance to. Series are told and asked nothing after it, only destroyed, and the backend last.
    virtual void shutdown(std::chrono::nanoseconds deadline) { flush(deadline); }
};

// Hidden: two libraries may have classes of the same name, and each has a table, and words, of its own.
namespace detail __attribute__((visibility("hidden"))) {

inline std::string &words() {
    static thread_local std::string words;
    return words;
}

inline void keep(const char *what) noexcept {
    try {
        words() = what;
    } catch (...) {
    }
}

// Runs what may throw; nothing leaves it.
template <class F> std::int32_t attempt(F &&f) noexcept {
    try {
        f();
        return MB_OK;
    } catch (const std::exception &error) {
        keep(error.what());
    } catch (...) {
        keep("something was thrown that is no std::exception");
    }
    return 1;
}

inline std::chrono::nanoseconds deadline(std::uint64_t ns) noexcept {
    return std::chrono::nanoseconds(ns > INT64_MAX ? INT64_MAX : static_cast<std::int64_t>(ns));
}

inline series *of(void *handle) noexcept { return static_cast<series *>(handle); }

inline declared declared_of(const mb_series &raw) {
    declared series;
    series.name = metricbus::detail::view(raw.name);
    series.help = metricbus::detail::view(raw.help);
    series.unit = metricbus::detail::view(raw.unit);
    series.kind = raw.kind;
    for (std::size_t i = 0; i < raw.labels_len; ++i) {
        series.labels.emplace_back(metricbus::detail::view(raw.labels[i].name),
                                   metricbus::detail::view(raw.labels[i].value));
    }
    series.bounds.assign(raw.bounds, raw.bounds + raw.bounds_len);
    return series;
}

template <class Backend> const mb_backend_table *table_of(const char *name) noexcept {
    static const mb_backend_table table = [name] {
        mb_backend_table t{};
        t.abi_major = MB_ABI_MAJOR;
        t.abi_minor = MB_ABI_MINOR;
        t.size = sizeof t;
        t.name = name;
        t.last_error = []() noexcept { return words().c_str(); };
        t.init = [](const mb_backend_config *raw, void **made) noexcept {
            return attempt([&] {
                config config{metricbus::detail::view(raw->service), metricbus::detail::view(raw->prefix)};
                *made = static_cast<backend *>(new Backend(config));
            });
        };
        t.destroy = [](void *b) noexcept { delete static_cast<backend *>(b); };
        t.declare = [](void *b, const mb_series *raw, void **handle) noexcept {
            return attempt([&] {
                auto made = static_cast<backend *>(b)->declare(declared_of(*raw));
                if (made == nullptr) {
                    throw std::runtime_error("declare returned nothing");
                }
                *handle = made.release();
            });
        };
        t.release = [](void *, void *h) noexcept { delete of(h); };
        t.inc = [](void *, void *h, std::uint64_t by) noexcept { return attempt([&] { of(h)->inc(by); }); };
        t.add = [](void *, void *h, double by) noexcept { return attempt([&] { of(h)->add(by); }); };
        t.set = [](void *, void *h, double value) noexcept { return attempt([&] { of(h)->set(value); }); };
        t.observe = [](void *, void *h, double value) noexcept { return attempt([&] { of(h)->observe(value); }); };
        t.get_value = [](void *, void *h, mb_value *value) noexcept {
            return attempt([&] { of(h)->get_value(*value); });
        };
        t.remove = [](void *, void *h) noexcept { return attempt([&] { of(h)->remove(); }); };
        t.flush = [](void *b, std::uint64_t ns) noexcept {
            return attempt([&] { static_cast<backend *>(b)->flush(deadline(ns)); });
        };
        t.shutdown = [](void *b, std::uint64_t ns) noexcept {
            return attempt([&] { static_cast<backend *>(b)->shutdown(deadline(ns)); });
        };
        return t;
    }();
    return &table;
}

} // namespace detail
} // namespace plugin
} // namespace metricbus

// Makes a library a backend: `Class` derives from metricbus::plugin::backend and is made from a metricbus::plugin::config.
#define METRICBUS_BACKEND(Class, name)                                                                                 \
    extern "C" MB_EXPORT const mb_backend_table *metricbus_backend(void) {                                            \
        return metricbus::plugin::detail::table_of<Class>(name);                                                       \
    }

#endif // METRICBUS_HPP
