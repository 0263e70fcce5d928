// A subscription that is left in place goes with its bus, and leaves nothing behind.
#include "metricbus.h"

#include <stddef.h>

static int32_t hear(const struct mb_changed *changed, void *user_data) {
    (void)changed;
    ++*(int *)user_data;
    return 0;
}

static void over(void *user_data) { __atomic_store_n((int *)user_data, -1, __ATOMIC_RELEASE); }

int main(void) {
    for (int i = 0; i < 20; ++i) {
        int heard = 0;
        struct mb_bus *bus;
        struct mb_subscription *subscription;
        if (mb_bus_new(&bus) != MB_OK || mb_on_change(bus, mb_s("depth"), hear, &heard, over, &subscription) != MB_OK ||
            mb_subscription_forget(subscription) != MB_OK) {
            return 1;
        }
        mb_bus_free(bus);
        while (__atomic_load_n(&heard, __ATOMIC_ACQUIRE) != -1) {
        }
    }
    return 0;
}
