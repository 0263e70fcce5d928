// A backend that throws wherever its names say so.
#include "metricbus.hpp"

namespace {

using namespace metricbus::plugin;

class fragile : public series {
  public:
    void inc(std::uint64_t) override { throw std::runtime_error("inc has thrown"); }
    void set(double) override { throw 17; }
    void observe(double) override {}
    void get_value(mb_value &) const override { throw std::runtime_error("get_value has thrown"); }
    void remove() override { throw std::runtime_error("remove has thrown"); }
};

class throwing : public backend {
  public:
    explicit throwing(const config &config) {
        if (config.service == "throws") {
            throw std::runtime_error("the constructor has thrown");
        }
    }
    std::unique_ptr<series> declare(const declared &series) override {
        if (series.name.find("thrown") != std::string_view::npos) {
            throw std::runtime_error("declare has thrown");
        }
        if (series.name.find("nothing") != std::string_view::npos) {
            return nullptr;
        }
        return std::make_unique<fragile>();
    }
    void flush(std::chrono::nanoseconds) override { throw std::runtime_error("flush has thrown"); }
};

} // namespace

METRICBUS_BACKEND(throwing, "throwing")
