/*
 * Asks Xen's own parsers, libxlu, what a domain configuration means: the oracle of
 * oracle_test.go.
 *
 *   libxlu FILE >answer.json
 *
 * Bytes are printed as the code points U+0000 to U+00FF.
 * Build: gcc libxlu.c -lxlutil -lxenlight (package libxen-dev).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <libxlutil.h>

static void text(const char *key, const char *s)
{
	printf("\"%s\":\"", key);
	for (const unsigned char *p = (const unsigned char *)(s ? s : ""); *p; p++) {
		if (*p < 0x20 || *p >= 0x7f || *p == '"' || *p == '\\')
			printf("\\u%04x", *p);
		else
			putchar(*p);
	}
	putchar('"');
}

static void disk(XLU_Config *cfg, const char *spec)
{
	libxl_device_disk d;

	memset(&d, 0, sizeof d);
	printf("{");
	text("spec", spec);
	if (xlu_disk_parse(cfg, 1, &spec, &d)) {
		printf(",\"refused\":true}");
		return;
	}
	printf(",");
	text("target", d.pdev_path);
	printf(",");
	text("vdev", d.vdev);
	printf(",");
	text("backend", d.backend_domname);
	printf(",");
	text("script", d.script);
	printf(",");
	text("format", d.format == LIBXL_DISK_FORMAT_EMPTY ? "" : libxl_disk_format_to_string(d.format));
	printf(",");
	text("backendtype", d.backend == LIBXL_DISK_BACKEND_UNKNOWN ? "" : libxl_disk_backend_to_string(d.backend));
	printf(",\"rw\":%s,\"cdrom\":%s}", d.readwrite ? "true" : "false", d.is_cdrom ? "true" : "false");
}

int main(int argc, char **argv)
{
	XLU_Config *cfg;
	XLU_ConfigList *list;
	const char *s;
	int n;

	if (argc != 2 || !(cfg = xlu_cfg_init(stderr, "config")))
		return 2;
	printf("{");
	if (xlu_cfg_readfile(cfg, argv[1])) {
		printf("\"refused\":true}\n");
		return 0;
	}
	printf("\"refused\":false");
	if (!xlu_cfg_get_string(cfg, "name", &s, 1)) {
		printf(",");
		text("name", s);
	}
	if (!xlu_cfg_get_string(cfg, "uuid", &s, 1)) {
		printf(",");
		text("uuid", s);
	}
	if (!xlu_cfg_get_list(cfg, "disk", &list, &n, 1)) {
		printf(",\"disks\":[");
		for (int i = 0; i < n && (s = xlu_cfg_get_listitem(list, i)); i++) {
			if (i)
				printf(",");
			disk(cfg, s);
		}
		printf("]");
	}
	printf("}\n");
	return 0;
}
