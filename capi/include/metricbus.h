// metricbus.h: metrics that react, for C and C++. Generated from the Rust side; do not edit.
//
// Two interfaces with one set of types:
//
//   - A program publishes into a bus and listens to it: mb_bus_new and all that follows, from libmetricbus_capi.
//   - A library is a backend: it exports metricbus_backend, which gives a struct mb_backend_table.
//
// What holds for all functions (README.md says more):
//
//   - They return MB_OK, or another number; mb_last_error() then says why. What ends in _free returns nothing, and takes NULL.
//   - All may be called from any thread, and with the same handle from several at once; a handle is given back once, when
//     nobody uses it any more.
//   - A handle that is given through a last argument is NULL when the call failed. It belongs to the caller, who gives it back.
//   - What is handed to a function is its caller's and is copied where it is kept. What a callback is handed is valid until it
//     returns.
//   - A structure that begins with `size` is filled with zeros, and its size set, before it is used: it may grow.

#ifndef METRICBUS_H
#define METRICBUS_H


#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// As the length of a text: it ends at its first NUL byte.
#define MB_NUL SIZE_MAX

// What a library exports, whatever it was compiled with.
#if defined(_WIN32)
#define MB_EXPORT __declspec(dllexport)
#else
#define MB_EXPORT __attribute__((visibility("default")))
#endif

// A bus: metrics are declared on it, and whoever wants to hear of them subscribes to it. A handle may carry a prefix and
// labels for what is declared with it.
typedef struct mb_bus mb_bus;


// Changes when old libraries and programs can't work any more. Both sides must have the same.
#define MB_ABI_MAJOR 1

// Grows when something is added at the end of a structure. Both sides may have their own.
#define MB_ABI_MINOR 0



// All is well.
#define MB_OK 0

// A counter that only grows, by whole numbers.
#define MB_COUNTER 1

// A gauge: it goes up and down, as a double.
#define MB_GAUGE 2

// A histogram: it counts observations in buckets.
#define MB_HISTOGRAM 3

// A counter that only grows, in doubles.
#define MB_REAL_COUNTER 4

// A pointer was NULL, or not aligned for what it should point to.
#define MB_ERROR_POINTER 1

// A text was not UTF-8.
#define MB_ERROR_UTF8 2

// A number was not one of those it can be: a size, a length, a word, a share.
#define MB_ERROR_VALUE 3

// A metric can't be declared so: a name, a label, a unit, buckets, or a clash with an earlier declaration.
#define MB_ERROR_DECLARE 4

// Too few or too many label values.
#define MB_ERROR_LABELS 5

// A selector can't be read.
#define MB_ERROR_SELECTOR 6

// A threshold or a delta is wrong.
#define MB_ERROR_SUBSCRIBE 7

// There can be no server at that address.
#define MB_ERROR_SERVE 8

// This build of the library can't do that.
#define MB_ERROR_UNSUPPORTED 9

// The time was over.
#define MB_ERROR_TIMEOUT 10

// A fault of the library itself. What was asked for may have been done in part; the bus goes on.
#define MB_ERROR_PANIC 11

// The bus was made by another copy of the library in the same process.
#define MB_ERROR_FOREIGN 12

// No bound at which it clears: it clears when its condition no longer holds.
#define MB_NONE 0

// Greater than the bound.
#define MB_ABOVE 1

// The bound or greater.
#define MB_AT_LEAST 2

// Less than the bound.
#define MB_BELOW 3

// The bound or less.
#define MB_AT_MOST 4

// The condition holds.
#define MB_RAISED 1

// It no longer does.
#define MB_CLEARED 2

// A mutation crossed the bound.
#define MB_CAUSE_CROSSING 1

// The condition held already when the subscription was made.
#define MB_CAUSE_INITIAL 2

// The series was removed while raised.
#define MB_CAUSE_REMOVED 3

// A counter: one series.
typedef struct mb_counter mb_counter;

// Counters of one name, that differ in the values of their labels.
typedef struct mb_counter_family mb_counter_family;

// A gauge: one series.
typedef struct mb_gauge mb_gauge;

// Gauges of one name, that differ in the values of their labels.
typedef struct mb_gauge_family mb_gauge_family;

// A histogram: one series.
typedef struct mb_histogram mb_histogram;

// Histograms of one name, that differ in the values of their labels.
typedef struct mb_histogram_family mb_histogram_family;

// A running server of `/metrics`, `/rules`, `/health` and `/live`.
typedef struct mb_server mb_server;

// A live subscription.
typedef struct mb_subscription mb_subscription;

// A sliding window over all series of a selector, present and future.
typedef struct mb_window mb_window;

// UTF-8 text. `len` is its length in bytes, or MB_NUL. With a length it may hold NUL bytes, and need not end in one.
// No pointer and no length is the empty text.
//
// It belongs to who made it. Whoever is given one may read it until the call returns, and copies what is to be kept.
typedef struct mb_str {
    // The first byte.
    const char *ptr;
    // How many bytes, or MB_NUL.
    size_t len;
} mb_str;

// A label.
typedef struct mb_label {
    // `[a-zA-Z_][a-zA-Z0-9_]*`
    struct mb_str name;
    // Any text.
    struct mb_str value;
} mb_label;

// What a metric is declared as. Set `size`, and zeros for what is not wanted.
typedef struct mb_desc {
    // sizeof(mb_desc)
    size_t size;
    // `[a-zA-Z_:][a-zA-Z0-9_:]*`; the prefix of the bus's handle comes before it. That of a counter ends in `_total`.
    struct mb_str name;
    // What it means.
    struct mb_str help;
    // A base unit such as `seconds` or `bytes`, in which the name must end (before `_total`). Empty: none.
    struct mb_str unit;
    // Labels with their values, for all series of the declaration.
    const struct mb_label *labels;
    // How many.
    size_t labels_len;
    // Of a family: the names of the labels whose values are given per child.
    const struct mb_str *label_names;
    // How many.
    size_t label_names_len;
    // Of a histogram: the upper bounds of its buckets, increasing; +Inf is added. None: the usual ones for seconds.
    const double *bounds;
    // How many, at most 1024.
    size_t bounds_len;
    // How many series the family may have; 0: as many as the bus says, which is 2000. Those beyond it share one.
    size_t series_max;
} mb_desc;

// A threshold. Set `size`, and zeros for what is not wanted.
typedef struct mb_threshold {
    // sizeof(mb_threshold)
    size_t size;
    // MB_ABOVE, MB_AT_LEAST, MB_BELOW or MB_AT_MOST.
    int32_t raise;
    // MB_NONE, or the opposite direction: of above and at least, MB_BELOW or MB_AT_MOST. A value that dances on the bound
    // calls back each time unless it clears somewhere else.
    int32_t clear;
    // In the unit of the metric; finite.
    double raise_bound;
    // On the far side of it; finite.
    double clear_bound;
    // Not to say at once of what is raised already when the subscription is made.
    bool no_initial;
    // How many events may wait for the callback; 0: 256. When there are more, the oldest is dropped that a later one of its
    // series supersedes, so the last state of each series always arrives.
    size_t capacity;
} mb_threshold;

// A threshold was crossed. Valid during the call.
typedef struct mb_crossing {
    // sizeof(mb_crossing) of the library.
    size_t size;
    // Where: name and labels, as they are shown.
    struct mb_str series;
    // MB_RAISED or MB_CLEARED.
    int32_t state;
    // MB_CAUSE_CROSSING, MB_CAUSE_INITIAL or MB_CAUSE_REMOVED.
    int32_t cause;
    // The value that crossed; it may be over by now.
    double value;
    // 1 for the first crossing of this series, 2 for the next: a gap is how many were dropped.
    uint64_t epoch;
    // When, in nanoseconds by the bus's clock.
    uint64_t at_ns;
} mb_crossing;

// Called with each crossing, one at a time, on a thread of the dispatcher. Returns 0, or another number if it failed; after
// three failures in a row it is detached. It must not throw. It may mutate metrics.
typedef int32_t (*mb_crossing_fn)(const struct mb_crossing *crossing, void *user_data);

// Called once with the data of a callback, when it will never be called again. May be NULL.
typedef void (*mb_drop_fn)(void *user_data);

// A value has moved by a delta or more. Valid during the call.
typedef struct mb_moved {
    // sizeof(mb_moved) of the library.
    size_t size;
    // Where.
    struct mb_str series;
    // The value last told, or found when subscribing.
    double from;
    // The value now.
    double to;
    // When, in nanoseconds by the bus's clock.
    uint64_t at_ns;
} mb_moved;

// As mb_crossing_fn.
typedef int32_t (*mb_moved_fn)(const struct mb_moved *moved, void *user_data);

// A value is not what it was when last told. Changes in between are told as one. Valid during the call.
typedef struct mb_changed {
    // sizeof(mb_changed) of the library.
    size_t size;
    // Where.
    struct mb_str series;
    // The value now; of a histogram, how many observations there are.
    double value;
    // When it is told, in nanoseconds by the bus's clock.
    uint64_t at_ns;
} mb_changed;

// As mb_crossing_fn.
typedef int32_t (*mb_changed_fn)(const struct mb_changed *changed, void *user_data);

// What a subscription has done so far. Set `size` before asking.
typedef struct mb_subscription_stats {
    // sizeof(mb_subscription_stats)
    size_t size;
    // Series that matched, present and past. 0 is the commonest reason why a callback never comes.
    uint64_t series_matched;
    // Events handed over.
    uint64_t delivered;
    // Events dropped because too many waited.
    uint64_t dropped;
    // Events whose callback failed.
    uint64_t failed;
    // 1 if it was ended because its callback failed three times in a row.
    uint64_t detached;
} mb_subscription_stats;

// What a window has seen. NaN stands for what there was nothing to go by; it is never 0 instead.
typedef struct mb_window_stats {
    // sizeof(mb_window_stats)
    size_t size;
    // The width in force: what was asked for, at least 100 ms. In nanoseconds.
    uint64_t width_ns;
    // The share of the width that was observed: 1 from when the window has existed for its width.
    double coverage;
    // How many series took part.
    uint64_t sources;
    // How many of them had no mutation in the window.
    uint64_t stale;
    // Of gauges, how often they were set; of histograms, observations; of counters 0.
    uint64_t count;
    // Of what was set or observed; of counters, the increase.
    double sum;
    // Of gauges over time, of histograms over observations. Not of counters.
    double avg;
    // Not of counters.
    double min;
    // Not of counters.
    double max;
    // As the average.
    double stddev;
    // The value of the one series, now. Not of histograms, and not of several series.
    double last;
    // Of counters; of gauges, by how much they changed; of histograms, observations.
    double increase;
    // The increase per second.
    double rate;
    // Seconds since the newest mutation.
    double age;
} mb_window_stats;

// What a backend is set up with. Valid during the call.
typedef struct mb_backend_config {
    // sizeof(mb_backend_config) of the program that calls.
    size_t size;
    // The version that the program was built with.
    uint32_t abi_major;
    // See above.
    uint32_t abi_minor;
    // What the service is called. Never empty.
    struct mb_str service;
    // What stands before the names of all metrics, which have it already. May be empty.
    struct mb_str prefix;
} mb_backend_config;

// A series that there is from now on. Valid during the call.
typedef struct mb_series {
    // sizeof(mb_series) of the program that calls.
    size_t size;
    // The full name, with the prefix.
    struct mb_str name;
    // What it means. May be empty.
    struct mb_str help;
    // The unit; empty where none was given.
    struct mb_str unit;
    // MB_COUNTER, MB_GAUGE, MB_HISTOGRAM or MB_REAL_COUNTER. A library that doesn't know what it is given should fail.
    int32_t kind;
    // In the order in which they are shown.
    const struct mb_label *labels;
    // How many.
    size_t labels_len;
    // Of a histogram: the upper bounds of its buckets, increasing, without the last one, which is +Inf. A value belongs
    // to the first bucket whose bound it does not exceed; NaN to the last one.
    const double *bounds;
    // How many.
    size_t bounds_len;
} mb_series;

// The value of a series, as the library has it. The program fills in `size`, `kind`, `buckets` and `buckets_len`, and
// zeros; the library what belongs to the kind.
typedef struct mb_value {
    // sizeof(mb_value) of the program that calls.
    size_t size;
    // MB_COUNTER, MB_GAUGE, MB_HISTOGRAM or MB_REAL_COUNTER.
    int32_t kind;
    // Of an MB_COUNTER.
    uint64_t whole;
    // Of an MB_GAUGE or MB_REAL_COUNTER.
    double real;
    // Of a histogram: the sum of all observations.
    double sum;
    // Of a histogram: room for how many observations there were in each bucket, not added up, the last one for +Inf.
    uint64_t *buckets;
    // How many: bounds_len + 1.
    size_t buckets_len;
} mb_value;

// What a library that is a backend gives from the one function that it exports:
// `const struct mb_backend_table *metricbus_backend(void)`.
//
// The table is never freed or changed. Size and version are looked at before anything else: of a table from another
// minor version, what both know is used.
//
// All functions may be called from any thread, and from several at once. Of `inc`, `add`, `set` and `observe` there is one
// call at a time for one series, in the order of the mutations; `get_value` may come at any time. None may throw, unwind or
// longjmp out. Those that can fail return MB_OK or another number, and `last_error` then says why. `inc`, `add`, `set` and
// `observe` are called by the threads that count, right after they have counted: they must not block, and must not call
// back into the bus.
typedef struct mb_backend_table {
    // MB_ABI_MAJOR.
    uint32_t abi_major;
    // MB_ABI_MINOR.
    uint32_t abi_minor;
    // sizeof(mb_backend_table).
    size_t size;
    // What the library is called, for people. Ends in NUL; lives as long as the table.
    const char *name;
    // Why the last call of this thread that failed did so. Ends in NUL; valid until this thread calls the library
    // again. NULL if there is nothing to say.
    const char *(*last_error)(void);
    // Sets up a backend, and stores what is to be handed to all other functions. There may be several in one process.
    int32_t (*init)(const struct mb_backend_config *config, void **backend);
    // The last call for a backend, when none of its series is held any more.
    void (*destroy)(void *backend);
    // Takes a series, and stores what is to be handed to the functions that follow. A series is declared once, until
    // it has been removed.
    int32_t (*declare)(void *backend, const struct mb_series *series, void **handle);
    // No one holds the series any more: the last call with this handle, which may be freed.
    void (*release)(void *backend, void *handle);
    // Of an MB_COUNTER: it has grown by this.
    int32_t (*inc)(void *backend, void *handle, uint64_t by);
    // Of an MB_REAL_COUNTER: it has grown by this. NULL in a library that takes no such series.
    int32_t (*add)(void *backend, void *handle, double by);
    // Of an MB_GAUGE: it is now this. NaN and infinities are values, too.
    int32_t (*set)(void *backend, void *handle, double value);
    // Of an MB_HISTOGRAM: this was observed.
    int32_t (*observe)(void *backend, void *handle, double value);
    // What the value is, as the library counted it.
    int32_t (*get_value)(void *backend, void *handle, struct mb_value *value);
    // The series was removed, or has expired, and should be shown no more. Nothing comes after it but `get_value` and
    // `release`. May be NULL.
    int32_t (*remove)(void *backend, void *handle);
    // Sends on what waits, within this many nanoseconds. May be NULL.
    int32_t (*flush)(void *backend, uint64_t deadline_ns);
    // The last chance to send on what waits, within this many nanoseconds. Called at most once. After it, for this backend,
    // come only `release` and `destroy`: what the other functions need may be freed here. Calls of other threads that are
    // under way are waited for, within the program's deadline; one that takes longer is still at it when this is called, and
    // so may a `release` be. May be NULL.
    int32_t (*shutdown)(void *backend, uint64_t deadline_ns);
} mb_backend_table;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Why the last call of this thread that failed did so. Never NULL; empty if none has failed. A call that succeeds leaves it
// as it is. Valid until the next call of this thread fails, or the thread ends.
const char *mb_last_error(void);

// The version of the library that runs: MB_ABI_MAJOR × 65536 + MB_ABI_MINOR of its header. A program can use a library of
// the same major version whose minor version is not less than that of the header it was built with.
uint32_t mb_abi_version(void);

// Makes a bus.
int32_t mb_bus_new(mb_bus **bus);

// Another handle to the same bus, with the same prefix and labels.
int32_t mb_bus_clone(const mb_bus *bus, mb_bus **clone);

// Another handle to the same bus, whose prefix comes after the prefix of this one, and whose labels after its labels. They
// are checked when something is declared.
int32_t mb_bus_scope(const mb_bus *bus,
                     struct mb_str prefix,
                     const struct mb_label *labels,
                     size_t labels_len,
                     mb_bus **scope);

// Gives a handle back. With the last one the bus ends, and with it its subscriptions; metrics that are still held count
// for nobody. NULL is none.
void mb_bus_free(mb_bus *bus);

// Removes the series that a selector matches, such as `{worker="3"}`, and says how many there were (`removed` may be
// NULL). They are shown no more, and late mutations do not bring them back.
int32_t mb_bus_remove(const mb_bus *bus, struct mb_str selector, size_t *removed);

// The value of the one series that a selector matches; of a histogram, how many observations there were. More or fewer
// than one is MB_ERROR_VALUE.
int32_t mb_bus_value(const mb_bus *bus, struct mb_str selector, double *value);

// All metrics of the bus in Prometheus's text format 0.0.4, ending in NUL; `len`, if it is not NULL, is the length without
// it. To be given back with mb_text_free.
int32_t mb_bus_text(const mb_bus *bus,
                    char **text,
                    size_t *len);

// Gives a text back. NULL is none. What was written into it meanwhile, also a NUL that makes it shorter, does not matter.
void mb_text_free(char *text);

// Declares a counter, or gives the one that was declared before in the same way.
int32_t mb_counter_new(const mb_bus *bus, const struct mb_desc *description, struct mb_counter **counter);

// Another handle to the same counter.
int32_t mb_counter_clone(const struct mb_counter *counter, struct mb_counter **clone);

// Gives a handle back. The counter stays on the bus, with its value. NULL is none.
void mb_counter_free(struct mb_counter *counter);

// Adds 1.
int32_t mb_counter_inc(const struct mb_counter *counter);

// Adds `amount`. A counter wraps at 2^64.
int32_t mb_counter_inc_by(const struct mb_counter *counter, uint64_t amount);

// The present value.
int32_t mb_counter_get(const struct mb_counter *counter, uint64_t *value);

// Declares a family of counters: `label_names` of the description are the labels whose values are given per child.
int32_t mb_counter_family_new(const mb_bus *bus, const struct mb_desc *description, struct mb_counter_family **family);

// The child with these values, in the order of the names; made where there is none. Worth keeping: to look it up costs
// more than to count.
int32_t mb_counter_family_with(const struct mb_counter_family *family,
                               const struct mb_str *values,
                               size_t values_len,
                               struct mb_counter **counter);

// Removes the child with these values, and says whether there was one (`removed` may be NULL). Who still holds it counts
// for nobody.
int32_t mb_counter_family_remove(const struct mb_counter_family *family,
                                 const struct mb_str *values,
                                 size_t values_len,
                                 bool *removed);

// Gives a handle back. The family stays on the bus. NULL is none.
void mb_counter_family_free(struct mb_counter_family *family);

// Declares a gauge, or gives the one that was declared before in the same way.
int32_t mb_gauge_new(const mb_bus *bus, const struct mb_desc *description, struct mb_gauge **gauge);

// Another handle to the same gauge.
int32_t mb_gauge_clone(const struct mb_gauge *gauge, struct mb_gauge **clone);

// Gives a handle back. The gauge stays on the bus, with its value. NULL is none.
void mb_gauge_free(struct mb_gauge *gauge);

// Makes `value` the value. NaN and infinities can be set, and are shown as such.
int32_t mb_gauge_set(const struct mb_gauge *gauge, double value);

// Adds `amount`, which may be negative.
int32_t mb_gauge_add(const struct mb_gauge *gauge, double amount);

// The present value.
int32_t mb_gauge_get(const struct mb_gauge *gauge, double *value);

// Declares a family of gauges: `label_names` of the description are the labels whose values are given per child.
int32_t mb_gauge_family_new(const mb_bus *bus, const struct mb_desc *description, struct mb_gauge_family **family);

// The child with these values, in the order of the names; made where there is none. Worth keeping: to look it up costs
// more than to count.
int32_t mb_gauge_family_with(const struct mb_gauge_family *family,
                             const struct mb_str *values,
                             size_t values_len,
                             struct mb_gauge **gauge);

// Removes the child with these values, and says whether there was one (`removed` may be NULL). Who still holds it counts
// for nobody.
int32_t mb_gauge_family_remove(const struct mb_gauge_family *family,
                               const struct mb_str *values,
                               size_t values_len,
                               bool *removed);

// Gives a handle back. The family stays on the bus. NULL is none.
void mb_gauge_family_free(struct mb_gauge_family *family);

// Declares a histogram, or gives the one that was declared before in the same way.
int32_t mb_histogram_new(const mb_bus *bus, const struct mb_desc *description, struct mb_histogram **histogram);

// Another handle to the same histogram.
int32_t mb_histogram_clone(const struct mb_histogram *histogram, struct mb_histogram **clone);

// Gives a handle back. The histogram stays on the bus, with its value. NULL is none.
void mb_histogram_free(struct mb_histogram *histogram);

// Counts `value` in its bucket, and adds it to the sum. NaN counts in the last bucket, and makes the sum NaN.
int32_t mb_histogram_observe(const struct mb_histogram *histogram, double value);

// How many observations there were, and their sum. Either place may be NULL.
int32_t mb_histogram_get(const struct mb_histogram *histogram, uint64_t *count, double *sum);

// Declares a family of histograms: `label_names` of the description are the labels whose values are given per child.
int32_t mb_histogram_family_new(const mb_bus *bus,
                                const struct mb_desc *description,
                                struct mb_histogram_family **family);

// The child with these values, in the order of the names; made where there is none. Worth keeping: to look it up costs
// more than to count.
int32_t mb_histogram_family_with(const struct mb_histogram_family *family,
                                 const struct mb_str *values,
                                 size_t values_len,
                                 struct mb_histogram **histogram);

// Removes the child with these values, and says whether there was one (`removed` may be NULL). Who still holds it counts
// for nobody.
int32_t mb_histogram_family_remove(const struct mb_histogram_family *family,
                                   const struct mb_str *values,
                                   size_t values_len,
                                   bool *removed);

// Gives a handle back. The family stays on the bus. NULL is none.
void mb_histogram_family_free(struct mb_histogram_family *family);

// Calls back when one of the series that a selector matches, present or future, crosses a threshold.
//
// `user_data` is handed to each call, and to `drop_user_data` when there will be no more: after the subscription or the bus
// has ended, or at once if this fails. Freeing the subscription ends it.
int32_t mb_on_threshold(const mb_bus *bus,
                        struct mb_str selector,
                        const struct mb_threshold *threshold,
                        mb_crossing_fn callback,
                        void *user_data,
                        mb_drop_fn drop_user_data,
                        struct mb_subscription **subscription);

// Calls back when one of the series has moved by `delta` or more, in the unit of the metric, since it was last told.
// `user_data` is as in mb_on_threshold.
int32_t mb_on_delta(const mb_bus *bus,
                    struct mb_str selector,
                    double delta,
                    mb_moved_fn callback,
                    void *user_data,
                    mb_drop_fn drop_user_data,
                    struct mb_subscription **subscription);

// Calls back when one of the series has changed since it was last told: a slow callback hears of each series at most once
// until it comes to look, and then gets its present value. `user_data` is as in mb_on_threshold.
int32_t mb_on_change(const mb_bus *bus,
                     struct mb_str selector,
                     mb_changed_fn callback,
                     void *user_data,
                     mb_drop_fn drop_user_data,
                     struct mb_subscription **subscription);

// What it has done so far.
int32_t mb_subscription_read(const struct mb_subscription *subscription, struct mb_subscription_stats *result);

// Ends it, and does not wait: a call that has begun goes on, and its data is given back after it. NULL is none.
void mb_subscription_free(struct mb_subscription *subscription);

// Ends it, and waits until its callback has returned and its data was given back, for at most this many nanoseconds
// (UINT64_MAX: for ever). After MB_OK it is never called again. The handle is given back in any case; MB_ERROR_TIMEOUT says
// that a call was still under way.
//
// In a callback, and in a drop_user_data, it never waits, whatever the time: callbacks that end each other would wait for each
// other. There MB_ERROR_TIMEOUT says at once that a call of another subscription is under way, and MB_OK that none is, or
// that it is the caller's own, after whose return nothing more comes. A thread that waits must hold no lock which the callback
// wants. NULL is none.
int32_t mb_subscription_join(struct mb_subscription *subscription,
                             uint64_t timeout_ns);

// Leaves it in place for as long as the bus lives, and gives the handle back.
int32_t mb_subscription_forget(struct mb_subscription *subscription);

// Opens a window over the series that a selector matches, from now on. Its width is at least 100 ms.
int32_t mb_window_open(const mb_bus *bus, struct mb_str selector, uint64_t width_ns, struct mb_window **window);

// What it has seen up to now. Set `size` of the result before.
//
// For each share in `shares` (0 to 1; 0.99 is the 99th percentile) `quantiles` gets the quantile, off by at most 1.1 %, or
// NaN. They are of the same moment as the rest. `result` may be NULL where only quantiles are wanted.
int32_t mb_window_read(const struct mb_window *window,
                       struct mb_window_stats *result,
                       const double *shares,
                       size_t shares_len,
                       double *quantiles);

// Ends it. NULL is none.
void mb_window_free(struct mb_window *window);

// Serves the metrics of a bus over HTTP, from a thread of its own. The address is `host:port`, with port 0 for any that is
// free; the server listens when this returns.
int32_t mb_serve(const mb_bus *bus,
                 struct mb_str address,
                 struct mb_server **server);

// Where it listens, as `host:port`, with the port it was given. Valid as long as the server.
int32_t mb_server_address(const struct mb_server *server, const char **address);

// Stops it: answers that are on their way are let finish, for at most 10 s, and then the address is free. NULL is none.
void mb_server_free(struct mb_server *server);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#ifdef __cplusplus
extern "C" {
#endif
// Of a library that is a backend, not of metricbus: what it exports.
MB_EXPORT const struct mb_backend_table *metricbus_backend(void);
#ifdef __cplusplus
}
#endif

// A text that ends in NUL. NULL is an error of the function that is given it.
static inline struct mb_str mb_s(const char *text) {
    struct mb_str s;
    s.ptr = text;
    s.len = MB_NUL;
    return s;
}

// A label of texts that end in NUL.
static inline struct mb_label mb_l(const char *name, const char *value) {
    struct mb_label label;
    label.name = mb_s(name);
    label.value = mb_s(value);
    return label;
}

// A description with a name and a help; the rest can be set after it.
static inline struct mb_desc mb_desc_of(const char *name, const char *help) {
    struct mb_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.size = sizeof desc;
    desc.name = mb_s(name);
    desc.help = mb_s(help);
    return desc;
}

// Raised above a bound, cleared below another.
static inline struct mb_threshold mb_above(double raise_bound, double clear_bound) {
    struct mb_threshold threshold;
    memset(&threshold, 0, sizeof threshold);
    threshold.size = sizeof threshold;
    threshold.raise = MB_ABOVE;
    threshold.raise_bound = raise_bound;
    threshold.clear = MB_BELOW;
    threshold.clear_bound = clear_bound;
    return threshold;
}

// Raised below a bound, cleared above another.
static inline struct mb_threshold mb_below(double raise_bound, double clear_bound) {
    struct mb_threshold threshold;
    memset(&threshold, 0, sizeof threshold);
    threshold.size = sizeof threshold;
    threshold.raise = MB_BELOW;
    threshold.raise_bound = raise_bound;
    threshold.clear = MB_ABOVE;
    threshold.clear_bound = clear_bound;
    return threshold;
}

#endif // METRICBUS_H
