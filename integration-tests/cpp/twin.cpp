// One of several backends whose classes have the same names, which no linker can tell apart. -DNAME="\"one\"" is what it says
// of itself.
#include "metricbus.hpp"

class mine : public metricbus::plugin::backend {
  public:
    explicit mine(const metricbus::plugin::config &) {}
    std::unique_ptr<metricbus::plugin::series> declare(const metricbus::plugin::declared &) override {
        throw std::runtime_error(NAME " takes nothing");
    }
};
METRICBUS_BACKEND(mine, NAME)
