// What the benches of the C ABI run in C: loops around one operation, and a backend that does as little as a library can.
#include "metricbus.h"

#include <stdatomic.h>

// The floor: a C11 atomic add, of the memory order that a counter's handle has.
void bench_atomic_add(_Atomic uint64_t *value, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        atomic_fetch_add_explicit(value, 1, memory_order_acq_rel);
    }
}

// Says whether all went well.
int32_t bench_counter_inc(const mb_counter *counter, uint64_t n) {
    int32_t status = MB_OK;
    for (uint64_t i = 0; i < n; i++) {
        status |= mb_counter_inc(counter);
    }
    return status;
}

// One place for all series: only the time it takes is of interest.
static _Atomic uint64_t counted;

static const char *no_error(void) { return ""; }

static int32_t init(const mb_backend_config *config, void **backend) {
    (void)config;
    *backend = &counted;
    return MB_OK;
}

static void destroy(void *backend) { (void)backend; }

static int32_t declare(void *backend, const mb_series *series, void **handle) {
    (void)series;
    *handle = backend;
    return MB_OK;
}

static void release(void *backend, void *handle) {
    (void)backend;
    (void)handle;
}

static int32_t inc(void *backend, void *handle, uint64_t by) {
    (void)backend;
    atomic_fetch_add_explicit((_Atomic uint64_t *)handle, by, memory_order_relaxed);
    return MB_OK;
}

static int32_t real(void *backend, void *handle, double value) {
    (void)backend;
    (void)handle;
    (void)value;
    return MB_OK;
}

static int32_t get_value(void *backend, void *handle, mb_value *value) {
    (void)backend;
    value->whole = atomic_load((_Atomic uint64_t *)handle);
    return MB_OK;
}

static const mb_backend_table table = {
    .abi_major = MB_ABI_MAJOR,
    .abi_minor = MB_ABI_MINOR,
    .size = sizeof(mb_backend_table),
    .name = "bench",
    .last_error = no_error,
    .init = init,
    .destroy = destroy,
    .declare = declare,
    .release = release,
    .inc = inc,
    .set = real,
    .observe = real,
    .get_value = get_value,
};

const mb_backend_table *bench_backend(void) { return &table; }
