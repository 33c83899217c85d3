#include "launch/network.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <bit>
#include <memory>

namespace lockstep::launch {
namespace {

uint32_t ipv4(const sockaddr* address) {
  return reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr;
}

std::string text(uint32_t address) {
  char out[INET_ADDRSTRLEN] = "";
  inet_ntop(AF_INET, &address, out, sizeof out);
  return out;
}

}  // namespace

std::vector<Interface> network_interfaces() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, &freeifaddrs);
  std::vector<Interface> interfaces;
  for (const ifaddrs* each = list; each != nullptr; each = each->ifa_next) {
    const bool usable = (each->ifa_flags & IFF_UP) != 0 && (each->ifa_flags & IFF_LOOPBACK) == 0;
    if (!usable || each->ifa_addr == nullptr || each->ifa_netmask == nullptr) continue;
    if (each->ifa_addr->sa_family != AF_INET) continue;
    const uint32_t address = ipv4(each->ifa_addr), mask = ipv4(each->ifa_netmask);
    interfaces.push_back({each->ifa_name, text(address),
                          fmt::format("{}/{}", text(address & mask), std::popcount(mask))});
  }
  return interfaces;
}

}  // namespace lockstep::launch
