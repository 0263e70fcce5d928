// Everything that a C program can get wrong and the library can notice. Prints nothing and returns 0 if all was noticed.
#include "metricbus.h"

#include <stdio.h>
#include <stdlib.h>

#define WANT(status, call)                                                                                             \
    do {                                                                                                               \
        int32_t got = (call);                                                                                          \
        if (got != (status)) {                                                                                         \
            fprintf(stderr, "%s:%d: %s gave %d: %s\n", __FILE__, __LINE__, #call, (int)got, mb_last_error());          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static int dropped;

static void drop(void *user) {
    dropped += 1;
    free(user);
}

static int32_t crossed(const struct mb_crossing *crossing, void *user) {
    (void)crossing;
    (void)user;
    return 0;
}

static int32_t moved(const struct mb_moved *event, void *user) {
    (void)event;
    (void)user;
    return 0;
}

static int32_t changed(const struct mb_changed *event, void *user) {
    (void)event;
    (void)user;
    return 0;
}

int main(void) {
    struct mb_bus *bus = NULL, *other = NULL;
    struct mb_counter *counter = NULL, *counter2 = NULL;
    struct mb_counter_family *counters = NULL;
    struct mb_gauge *gauge = NULL;
    struct mb_gauge_family *gauges = NULL;
    struct mb_histogram *histogram = NULL;
    struct mb_histogram_family *histograms = NULL;
    struct mb_window *window = NULL;
    struct mb_subscription *subscription = NULL;
    struct mb_server *server = NULL;
    struct mb_str label = mb_s("l"), value = mb_s("v");
    struct mb_desc desc = mb_desc_of("a_total", "A.");
    struct mb_threshold threshold = mb_above(1, 0.5);
    uint64_t whole;
    double real;
    char *text;
    const char *address;

    // NULL for each pointer in turn.
    WANT(MB_ERROR_POINTER, mb_bus_new(NULL));
    WANT(MB_OK, mb_bus_new(&bus));
    WANT(MB_ERROR_POINTER, mb_bus_clone(NULL, &other));
    WANT(MB_ERROR_POINTER, mb_bus_clone(bus, NULL));
    WANT(MB_ERROR_POINTER, mb_bus_scope(bus, mb_s("p_"), NULL, 1, &other));
    WANT(MB_ERROR_POINTER, mb_bus_scope(bus, mb_s(NULL), NULL, 0, &other));
    WANT(MB_ERROR_POINTER, mb_bus_text(bus, NULL, NULL));
    WANT(MB_ERROR_POINTER, mb_bus_text(NULL, &text, NULL));
    WANT(MB_ERROR_VALUE, mb_bus_value(bus, mb_s("a"), NULL));
    WANT(MB_ERROR_POINTER, mb_counter_new(bus, &desc, NULL));
    WANT(MB_OK, mb_counter_new(bus, &desc, &counter));
    WANT(MB_ERROR_POINTER, mb_counter_get(counter, NULL));
    WANT(MB_ERROR_POINTER, mb_counter_get(NULL, &whole));
    WANT(MB_ERROR_POINTER, mb_counter_clone(counter, NULL));
    WANT(MB_ERROR_POINTER, mb_counter_inc_by(NULL, 1));
    WANT(MB_ERROR_POINTER, mb_gauge_set(NULL, 1));
    WANT(MB_ERROR_POINTER, mb_gauge_add(NULL, 1));
    WANT(MB_ERROR_POINTER, mb_gauge_get(NULL, &real));
    WANT(MB_ERROR_POINTER, mb_histogram_observe(NULL, 1));
    WANT(MB_ERROR_POINTER, mb_histogram_get(NULL, &whole, &real));
    WANT(MB_ERROR_POINTER, mb_serve(NULL, mb_s("127.0.0.1:0"), &server));
    WANT(MB_ERROR_POINTER, mb_server_address(NULL, &address));
    WANT(MB_ERROR_POINTER, mb_window_read(NULL, NULL, NULL, 0, NULL));

    // Bad UTF-8, bad names, bad labels, bad buckets.
    desc = mb_desc_of("caf\xe9", "");
    WANT(MB_ERROR_UTF8, mb_counter_new(bus, &desc, &counter2));
    desc = mb_desc_of("b_total", "\xff");
    WANT(MB_ERROR_UTF8, mb_counter_new(bus, &desc, &counter2));
    desc = mb_desc_of("nine\"lives", "");
    WANT(MB_ERROR_DECLARE, mb_gauge_new(bus, &desc, &gauge));
    double bounds[] = {2, 1};
    desc = mb_desc_of("size", "Size.");
    desc.bounds = bounds;
    desc.bounds_len = 2;
    WANT(MB_ERROR_DECLARE, mb_histogram_new(bus, &desc, &histogram));
    desc.bounds = NULL;
    WANT(MB_ERROR_POINTER, mb_histogram_new(bus, &desc, &histogram));
    struct mb_label twice[] = {mb_l("x", "1"), mb_l("x", "2")};
    desc = mb_desc_of("size", "Size.");
    desc.labels = twice;
    desc.labels_len = 2;
    WANT(MB_ERROR_DECLARE, mb_gauge_new(bus, &desc, &gauge));
    desc.size = 0;
    WANT(MB_ERROR_VALUE, mb_gauge_new(bus, &desc, &gauge));

    // Families.
    desc = mb_desc_of("f_total", "F.");
    WANT(MB_ERROR_DECLARE, mb_counter_family_new(bus, &desc, &counters));
    desc.label_names = &label;
    desc.label_names_len = 1;
    WANT(MB_OK, mb_counter_family_new(bus, &desc, &counters));
    WANT(MB_ERROR_LABELS, mb_counter_family_with(counters, NULL, 0, &counter2));
    WANT(MB_ERROR_POINTER, mb_counter_family_with(counters, NULL, 1, &counter2));
    WANT(MB_OK, mb_counter_family_with(counters, &value, 1, &counter2));
    WANT(MB_OK, mb_counter_inc(counter2));
    desc.name = mb_s("g");
    WANT(MB_OK, mb_gauge_family_new(bus, &desc, &gauges));
    WANT(MB_OK, mb_gauge_family_with(gauges, &value, 1, &gauge));
    WANT(MB_OK, mb_gauge_family_remove(gauges, &value, 1, NULL));
    WANT(MB_OK, mb_gauge_set(gauge, 1));
    desc.name = mb_s("h");
    WANT(MB_OK, mb_histogram_family_new(bus, &desc, &histograms));
    WANT(MB_OK, mb_histogram_family_with(histograms, &value, 1, &histogram));
    WANT(MB_OK, mb_histogram_get(histogram, NULL, NULL));

    // Subscriptions: the data is given back whatever goes wrong.
    WANT(MB_ERROR_SELECTOR, mb_on_threshold(bus, mb_s("{"), &threshold, crossed, malloc(1), drop, &subscription));
    WANT(MB_ERROR_POINTER, mb_on_threshold(bus, mb_s("g"), NULL, crossed, malloc(1), drop, &subscription));
    WANT(MB_ERROR_POINTER, mb_on_threshold(bus, mb_s("g"), &threshold, NULL, malloc(1), drop, &subscription));
    WANT(MB_ERROR_POINTER, mb_on_threshold(bus, mb_s("g"), &threshold, crossed, malloc(1), drop, NULL));
    threshold = mb_above(1, 2);
    WANT(MB_ERROR_SUBSCRIBE, mb_on_threshold(bus, mb_s("g"), &threshold, crossed, malloc(1), drop, &subscription));
    WANT(MB_ERROR_SUBSCRIBE, mb_on_delta(bus, mb_s("g"), -1, moved, malloc(1), drop, &subscription));
    WANT(MB_ERROR_POINTER, mb_on_delta(bus, mb_s("g"), 1, NULL, malloc(1), drop, &subscription));
    WANT(MB_ERROR_POINTER, mb_on_change(bus, mb_s("g"), NULL, malloc(1), drop, &subscription));
    WANT(MB_OK, dropped == 8 ? MB_OK : dropped);
    WANT(MB_OK, mb_on_change(bus, mb_s("f_total"), changed, malloc(1), drop, &subscription));
    WANT(MB_OK, mb_counter_inc(counter2));
    WANT(MB_ERROR_POINTER, mb_subscription_read(subscription, NULL));
    WANT(MB_OK, mb_subscription_join(subscription, UINT64_MAX));
    WANT(MB_OK, dropped == 9 ? MB_OK : dropped);

    // Windows and servers.
    WANT(MB_ERROR_SELECTOR, mb_window_open(bus, mb_s("g{"), 1, &window));
    WANT(MB_OK, mb_window_open(bus, mb_s("g"), 0, &window));
    struct mb_window_stats stats = {.size = 1};
    WANT(MB_ERROR_VALUE, mb_window_read(window, &stats, NULL, 0, NULL));
    double share = 2;
    WANT(MB_ERROR_VALUE, mb_window_read(window, NULL, &share, 1, &real));
    WANT(MB_ERROR_SERVE, mb_serve(bus, mb_s("nowhere"), &server));
    mb_server_free(server);

    // The bus goes first, and the rest is still good for being used and given back.
    mb_window_free(window);
    mb_bus_free(bus);
    WANT(MB_OK, mb_counter_inc(counter));
    WANT(MB_OK, mb_counter_get(counter, &whole));
    mb_counter_free(counter);
    WANT(MB_OK, mb_counter_family_with(counters, &value, 1, &counter));
    mb_counter_free(counter);
    mb_counter_free(counter2);
    mb_counter_family_free(counters);
    mb_gauge_free(gauge);
    mb_gauge_family_free(gauges);
    mb_histogram_free(histogram);
    mb_histogram_family_free(histograms);
    return 0;
}
