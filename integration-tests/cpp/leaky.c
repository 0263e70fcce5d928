// Loses a bus: whoever looks over its shoulder has to say so.
#include "metricbus.h"

int main(void) {
    struct mb_bus *bus;
    if (mb_bus_new(&bus) != MB_OK) {
        return 1;
    }
    bus = 0;
    return bus != 0;
}
