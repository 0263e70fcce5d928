// Scrapers that close before they have read their answer: the program that serves goes on. Prints "served" if it does.
#define _POSIX_C_SOURCE 200809L
#include "metricbus.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WANT(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%d: %s: %s\n", __LINE__, #condition, mb_last_error());                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const char REQUEST[] = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
static const char LAST[] = "GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

static int connected(const char *address) {
    const char *port = strrchr(address, ':');
    struct sockaddr_in to;
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons((unsigned short)atoi(port + 1));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    WANT(client >= 0 && connect(client, (struct sockaddr *)&to, sizeof to) == 0);
    return client;
}

int main(void) {
    struct sigaction usual;
    WANT(sigaction(SIGPIPE, NULL, &usual) == 0 && usual.sa_handler == SIG_DFL);

    struct mb_bus *bus;
    struct mb_counter_family *requests;
    struct mb_str name = mb_s("worker");
    struct mb_desc desc = mb_desc_of("requests_total", "Requests served.");
    desc.label_names = &name;
    desc.label_names_len = 1;
    WANT(mb_bus_new(&bus) == MB_OK && mb_counter_family_new(bus, &desc, &requests) == MB_OK);
    for (int i = 0; i < 1900; ++i) {
        char value[300];
        snprintf(value, sizeof value, "%0250d", i);
        struct mb_str worker = mb_s(value);
        struct mb_counter *counter;
        WANT(mb_counter_family_with(requests, &worker, 1, &counter) == MB_OK && mb_counter_inc(counter) == MB_OK);
        mb_counter_free(counter);
    }
    struct mb_server *server;
    const char *address;
    WANT(mb_serve(bus, mb_s("127.0.0.1:0"), &server) == MB_OK && mb_server_address(server, &address) == MB_OK);

    for (int i = 0; i < 100; ++i) {
        int client = connected(address);
        for (int n = 0; n <= i % 3; ++n) {
            // It may have been reset already, which is no concern here.
            (void)!send(client, REQUEST, sizeof REQUEST - 1, MSG_NOSIGNAL);
        }
        char some[1000];
        if (i % 4 == 1) {
            (void)!recv(client, some, sizeof some, 0);
        }
        if (i % 2) {
            struct linger reset = {1, 0};
            setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        }
        close(client);
    }

    // Behind all of them: when this one has its answer, and the server has ended, they have been written to.
    int client = connected(address);
    WANT(send(client, LAST, sizeof LAST - 1, MSG_NOSIGNAL) == (ssize_t)(sizeof LAST - 1));
    char answer[12];
    WANT(recv(client, answer, sizeof answer, MSG_WAITALL) == sizeof answer);
    WANT(memcmp(answer, "HTTP/1.1 200", sizeof answer) == 0);
    close(client);
    mb_server_free(server);
    // What this thread writes is the program's own affair.
    WANT(sigaction(SIGPIPE, NULL, &usual) == 0 && usual.sa_handler == SIG_DFL);
    mb_counter_family_free(requests);
    mb_bus_free(bus);
    puts("served");
    return 0;
}
