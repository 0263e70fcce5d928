// A backend in plain C, whole or broken in one way: -DNO_SYMBOL, -DNO_TABLE, -DMAJOR=2, -DSHORT, -DNO_INC, -DINIT_FAILS,
// -DDECLARE_FAILS, -DCALLS_FAIL, -DUNRESOLVED.
#include "metricbus.h"

#include <stdlib.h>

#ifndef MAJOR
#define MAJOR MB_ABI_MAJOR
#endif

#ifdef CALLS_FAIL
#define STATUS 9
#else
#define STATUS MB_OK
#endif

struct account {
    uint64_t whole;
    double real;
};

#ifdef UNRESOLVED
extern int nobody_has_this(void);
#endif

static const char *last_error(void) { return "the licence has run out"; }

static int32_t init(const struct mb_backend_config *config, void **backend) {
    (void)config;
    *backend = NULL; // it has nothing to keep
#ifdef UNRESOLVED
    return nobody_has_this();
#elif defined(INIT_FAILS)
    return 4;
#else
    return MB_OK;
#endif
}

static void destroy(void *backend) { (void)backend; }

static int32_t declare(void *backend, const struct mb_series *series, void **handle) {
    (void)backend;
#ifdef DECLARE_FAILS
    return 5;
#endif
    (void)series;
    *handle = calloc(1, sizeof(struct account));
    return *handle == NULL ? 1 : MB_OK;
}

static void release(void *backend, void *handle) {
    (void)backend;
    free(handle);
}

static int32_t inc(void *backend, void *handle, uint64_t by) {
    (void)backend;
    __atomic_fetch_add(&((struct account *)handle)->whole, by, __ATOMIC_RELAXED);
    return STATUS;
}

static int32_t set(void *backend, void *handle, double value) {
    (void)backend;
    __atomic_store(&((struct account *)handle)->real, &value, __ATOMIC_RELAXED);
    return STATUS;
}

static int32_t get_value(void *backend, void *handle, struct mb_value *value) {
    (void)backend;
    value->whole = __atomic_load_n(&((struct account *)handle)->whole, __ATOMIC_RELAXED);
    __atomic_load(&((struct account *)handle)->real, &value->real, __ATOMIC_RELAXED);
    return STATUS;
}

static const struct mb_backend_table table = {
    .abi_major = MAJOR,
    .abi_minor = MB_ABI_MINOR,
#ifdef SHORT
    .size = offsetof(struct mb_backend_table, get_value),
#else
    .size = sizeof table,
#endif
    .name = "plain",
    .last_error = last_error,
    .init = init,
    .destroy = destroy,
    .declare = declare,
    .release = release,
#ifndef NO_INC
    .inc = inc,
#endif
    .set = set,
    .observe = set,
    .get_value = get_value,
};

#ifdef NO_SYMBOL
MB_EXPORT const void *something_else(void) { return &table; }
#else
const struct mb_backend_table *metricbus_backend(void) {
#ifdef NO_TABLE
    return NULL;
#else
    return &table;
#endif
}
#endif
