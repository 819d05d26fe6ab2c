/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Options of the loopback provider: text in, loopback_plan out. One table says everything about an
 * option: its key, its type, its range, where it goes. Numbers are read by hand: strtoull() takes
 * signs and blanks, and strtod() the decimal point of the process's locale. */
#include "loopback_plan.h"

#include <stdio.h>
#include <string.h>

enum option_type {
    OPTION_IGNORED,     /* any text */
    OPTION_U32,         /* into a uint32_t */
    OPTION_U64,         /* into a uint64_t */
    OPTION_PROBABILITY, /* into a loopback_odds */
    OPTION_FLAG,        /* "0" or "1", into a bool */
    OPTION_DELAY,       /* "min:max" in microseconds, into delay_min_ns and delay_max_ns */
    OPTION_FAILURE      /* the name of a status, into a pplx_status */
};

typedef struct option_rule {
    const char *key;
    enum option_type type;
    size_t offset; /* in loopback_plan */
    uint64_t min, max;
    const char *takes; /* completes "option 'key' takes ..." */
} option_rule;

#define AT(field) offsetof(loopback_plan, field)

static const uint64_t delay_limit_us = 3600ull * 1000 * 1000;

static const option_rule rules[] = {
    {"node", OPTION_IGNORED, 0, 0, 0, "any text"},
    {"seed", OPTION_U64, AT(seed), 0, UINT64_MAX, "an integer from 0 to 2^64-1"},
    {"reorder", OPTION_U32, AT(reorder), 0, 4096, "a window of 0 to 4096 operations"},
    {"delay_us", OPTION_DELAY, 0, 0, 0, "'min:max' in microseconds, min <= max <= one hour"},
    {"again", OPTION_PROBABILITY, AT(again), 0, 0, "a probability such as 0.05, below 1"},
    {"fail", OPTION_PROBABILITY, AT(fail), 0, 0, "a probability from 0 to 1, such as 0.05"},
    {"fail_status", OPTION_FAILURE, AT(fail_status), 0, 0, "the name of a failure, such as TRANSPORT"},
    {"fail_after", OPTION_U64, AT(fail_after), 1, UINT64_MAX - 1, "which operation fails, counted from 1"},
    {"fail_registration", OPTION_U64, AT(fail_registration), 1, UINT64_MAX - 1,
     "which registration is refused, counted from 1"},
    {"fail_deregistration", OPTION_U64, AT(fail_deregistration), 1, UINT64_MAX - 1,
     "which deregistration fails, counted from 1"},
    {"drop_after", OPTION_U64, AT(drop_after), 0, UINT64_MAX - 1, "a number of operations"},
    {"max_message", OPTION_U64, AT(max_message), 1, UINT64_C(1) << 40, "bytes, 1 to 2^40"},
    {"max_inflight", OPTION_U32, AT(max_inflight), 1, 65536, "1 to 65536 operations"},
    {"eager_posts", OPTION_U32, AT(eager_posts), 1, 65536, "1 to 65536 operations"},
    {"posts_per_turn", OPTION_U32, AT(posts_per_turn), 1, 65536, "1 to 65536 operations"},
    {"device", OPTION_U64, AT(device), 0, 7, "the number of a device"},
    {"bits_per_second", OPTION_U64, AT(bits_per_second), 0, UINT64_C(1) << 50, "bits per second, 0 for no limit"},
    {"wait_fd", OPTION_FLAG, AT(wait_fd), 0, 1, "0 or 1"},
    {"release", OPTION_FLAG, AT(release), 0, 1, "0 or 1"},
};

/* Decimal digits from *text up to the first other character. False: none, or 2^64 and more. */
static bool read_digits(const char **text, uint64_t *value) {
    const char *at = *text;
    uint64_t sum = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        uint64_t digit = (uint64_t)(*at - '0');
        if (sum > (UINT64_MAX - digit) / 10) return false;
        sum = sum * 10 + digit;
    }
    bool some = at != *text;
    *text = at;
    *value = sum;
    return some;
}

static bool read_integer(const char *text, const option_rule *rule, uint64_t *value) {
    return read_digits(&text, value) && *text == '\0' && *value >= rule->min && *value <= rule->max;
}

/* "0", "1", "0.05", ".5", "1.0": at most 18 digits behind the point count. */
static bool read_probability(const char *text, loopback_odds *odds) {
    uint64_t whole = 0, part = 0, scale = 1;
    bool some = false;
    if (*text >= '0' && *text <= '9') {
        if (!read_digits(&text, &whole)) return false;
        some = true;
    }
    if (*text == '.') {
        for (text++; *text >= '0' && *text <= '9'; text++) {
            some = true;
            if (scale >= UINT64_C(1000000000000000000)) continue;
            part = part * 10 + (uint64_t)(*text - '0');
            scale *= 10;
        }
    }
    if (!some || *text != '\0' || whole > 1 || (whole == 1 && part > 0)) return false;
    *odds = whole == 1 ? UINT64_C(1) << 32 : (loopback_odds)((long double)part / (long double)scale * 4294967296.0L);
    if (whole == 0 && part > 0 && *odds == 0) *odds = 1; /* rare is not never */
    return true;
}

static bool read_delay(const char *text, loopback_plan *plan) {
    uint64_t min, max;
    if (!read_digits(&text, &min) || *text++ != ':' || !read_digits(&text, &max) || *text != '\0') return false;
    if (min > max || max > delay_limit_us) return false;
    plan->delay_min_ns = min * 1000;
    plan->delay_max_ns = max * 1000;
    return true;
}

static bool read_failure(const char *text, pplx_status *status) {
    static const struct {
        const char *name;
        pplx_status status;
    } names[] = {
#define X(name, number, message) {#name, PPLX_##name},
        PPLX_STATUS_MAP(X)
#undef X
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(text, names[i].name) != 0) continue;
        *status = names[i].status;
        return *status != PPLX_OK && *status != PPLX_AGAIN; /* neither is the end of an operation that failed */
    }
    return false;
}

static bool read_option(loopback_plan *plan, const option_rule *rule, const char *text) {
    void *field = (char *)plan + rule->offset;
    uint64_t value = 0;
    switch (rule->type) {
    case OPTION_IGNORED: return true;
    case OPTION_PROBABILITY:
        if (!read_probability(text, field)) return false;
        /* a post() that never takes anything is no fault but a standstill */
        return rule->offset != AT(again) || plan->again < UINT64_C(1) << 32;
    case OPTION_DELAY: return read_delay(text, plan);
    case OPTION_FAILURE: return read_failure(text, field);
    case OPTION_U64: return read_integer(text, rule, field);
    case OPTION_U32:
        if (!read_integer(text, rule, &value)) return false;
        *(uint32_t *)field = (uint32_t)value;
        return true;
    case OPTION_FLAG:
        if (!read_integer(text, rule, &value)) return false;
        *(bool *)field = value != 0;
        return true;
    }
    return false;
}

pplx_status pplx_loopback_plan_parse(loopback_plan *plan, const pplx_option *options, size_t noptions,
                                     pplx_error *error) {
    *plan = (loopback_plan){
        .fail_status = PPLX_TRANSPORT,
        .fail_after = UINT64_MAX,
        .fail_registration = UINT64_MAX,
        .fail_deregistration = UINT64_MAX,
        .drop_after = UINT64_MAX,
        .device = UINT64_MAX,
        .max_message = UINT64_C(1) << 30,
        .max_inflight = 1024,
        .eager_posts = 16,
        .posts_per_turn = 64,
        .wait_fd = true,
        .release = true,
    };
    for (size_t i = 0; i < noptions; i++) {
        const char *key = options[i].key ? options[i].key : "";
        const option_rule *rule = NULL;
        for (size_t j = 0; j < sizeof rules / sizeof *rules && !rule; j++)
            if (strcmp(key, rules[j].key) == 0) rule = &rules[j];
        if (rule && options[i].value && read_option(plan, rule, options[i].value)) continue;
        if (error) {
            *error = (pplx_error){.status = PPLX_INVALID};
            if (rule)
                snprintf(error->text, sizeof error->text, "loopback option '%s' takes %s, not '%.60s'", key,
                         rule->takes, options[i].value ? options[i].value : "(null)");
            else
                snprintf(error->text, sizeof error->text, "loopback has no option '%.60s'", key);
        }
        return PPLX_INVALID;
    }
    return PPLX_OK;
}
