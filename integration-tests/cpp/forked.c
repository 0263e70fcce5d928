// A child of fork that makes a bus of its own has all of one: callbacks, windows that forget, a server. Prints "forked" if so.
#define _POSIX_C_SOURCE 200809L
#include "metricbus.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WANT(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%d: %s: %s\n", __LINE__, #condition, mb_last_error());                                    \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static int32_t crossed(const struct mb_crossing *crossing, void *user_data) {
    (void)crossing;
    __atomic_store_n((int *)user_data, 1, __ATOMIC_RELEASE);
    return 0;
}

static double increase(struct mb_window *window) {
    struct mb_window_stats stats;
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    WANT(mb_window_read(window, &stats, NULL, 0, NULL) == MB_OK);
    return stats.increase;
}

// What a bus is for, in this process.
static void work(void) {
    static int heard;
    struct mb_bus *bus;
    struct mb_counter *counter;
    struct mb_desc desc = mb_desc_of("requests_total", "Requests served.");
    WANT(mb_bus_new(&bus) == MB_OK && mb_counter_new(bus, &desc, &counter) == MB_OK);
    struct mb_window *window;
    WANT(mb_window_open(bus, mb_s("requests_total"), UINT64_C(300000000), &window) == MB_OK);
    struct mb_threshold threshold = mb_above(2, 1);
    struct mb_subscription *subscription;
    heard = 0;
    WANT(mb_on_threshold(bus, mb_s("requests_total"), &threshold, crossed, &heard, NULL, &subscription) == MB_OK);
    struct mb_server *server;
    WANT(mb_serve(bus, mb_s("127.0.0.1:0"), &server) == MB_OK);
    WANT(mb_counter_inc_by(counter, 3) == MB_OK);
    while (!__atomic_load_n(&heard, __ATOMIC_ACQUIRE)) {
        sched_yield();
    }
    while (increase(window) != 0) {
        sched_yield();
    }
}

int main(void) {
    work();
    for (int i = 0; i < 10; ++i) {
        pid_t child = fork();
        WANT(child >= 0);
        if (child == 0) {
            work();
            _exit(0);
        }
        int status;
        WANT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    puts("forked");
    return 0;
}
