//! Where clients and regions are on the globe, and what of it is near what.

use std::collections::HashMap;

/// In degrees; north and east are positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub latitude: f64,
    pub longitude: f64,
}

/// A region of the network, and where its edges are.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedRegion {
    pub name: String,
    pub place: Place,
}

impl Place {
    /// Half the square of the chord between them on a globe of radius 1: it grows with the distance.
    fn apart(self, other: Self) -> f64 {
        let (a, b) = (self.latitude.to_radians(), other.latitude.to_radians());
        1.0 - a.sin() * b.sin() - a.cos() * b.cos() * (self.longitude - other.longitude).to_radians().cos()
    }
}

/// Names of the regions, the nearest first.
#[must_use]
pub fn nearest(regions: &[PlacedRegion], client: Place) -> Vec<String> {
    let mut all: Vec<&PlacedRegion> = regions.iter().collect();
    all.sort_by(|a, b| client.apart(a.place).total_cmp(&client.apart(b.place)).then_with(|| a.name.cmp(&b.name)));
    all.into_iter().map(|r| r.name.clone()).collect()
}

/// Where most people of each country are, roughly, by its code (ISO 3166-1).
#[must_use]
pub fn countries() -> HashMap<&'static str, Place> {
    let one = |row: &'static str| {
        let mut fields = row.split_ascii_whitespace();
        let code = fields.next()?;
        Some((code, Place { latitude: fields.next()?.parse().ok()?, longitude: fields.next()?.parse().ok()? }))
    };
    COUNTRIES.split(';').filter_map(one).collect()
}

/// Code, latitude and longitude in whole degrees: of a large city of the country, or of its middle where it is as wide as a continent.
const COUNTRIES: &str = "\
    AD 42 2; AE 25 55; AF 35 69; AG 17 -62; AI 18 -63; AL 41 20; AM 40 44; AO -9 13; AQ -78 167; AR -35 -58; AS -14 -171; AT 48 16; AU \
    -34 151; AW 12 -70; AX 60 20; AZ 40 50; BA 44 18; BB 13 -60; BD 24 90; BE 51 4; BF 12 -2; BG 43 23; BH 26 51; BI -3 29; BJ 6 3; BL \
    18 -63; BM 32 -65; BN 5 115; BO -16 -68; BQ 12 -68; BR -24 -47; BS 25 -77; BT 27 90; BW -25 26; BY 54 28; BZ 18 -88; CA 44 -79; CC \
    -12 97; CD -4 15; CF 4 19; CG -4 15; CH 47 9; CI 5 -4; CK -21 -160; CL -33 -71; CM 4 10; CN 32 115; CO 5 -74; CR 10 -84; CU 23 \
    -82; CV 15 -24; CW 12 -69; CX -10 106; CY 35 33; CZ 50 14; DE 52 13; DJ 12 43; DK 56 13; DM 15 -61; DO 18 -70; DZ 37 3; EC -2 -80; \
    EE 59 25; EG 30 31; EH 27 -13; ER 15 39; ES 40 -4; ET 9 39; FI 60 25; FJ -18 178; FK -52 -58; FM 7 152; FO 62 -7; FR 49 2; GA 0 9; \
    GB 52 0; GD 12 -62; GE 42 45; GF 5 -52; GG 49 -3; GH 6 0; GI 36 -5; GL 64 -52; GM 13 -17; GN 10 -14; GP 16 -62; GQ 4 9; GR 38 24; \
    GS -54 -37; GT 15 -91; GU 13 145; GW 12 -16; GY 7 -58; HK 22 114; HN 14 -87; HR 46 16; HT 19 -72; HU 48 19; ID -6 107; IE 53 -6; \
    IL 32 35; IM 54 -4; IN 21 78; IO -7 72; IQ 33 44; IR 36 51; IS 64 -22; IT 42 12; JE 49 -2; JM 18 -77; JO 32 36; JP 36 140; KE -1 \
    37; KG 43 75; KH 12 105; KI 1 173; KM -12 43; KN 17 -63; KP 39 126; KR 38 127; KW 29 48; KY 19 -81; KZ 43 77; LA 18 103; LB 34 36; \
    LC 14 -61; LI 47 10; LK 7 80; LR 6 -11; LS -29 28; LT 55 25; LU 50 6; LV 57 24; LY 33 13; MA 34 -8; MC 44 7; MD 47 29; ME 42 19; \
    MF 18 -63; MG -19 48; MH 7 171; MK 42 21; ML 13 -8; MM 17 96; MN 48 107; MO 22 114; MP 15 146; MQ 15 -61; MR 18 -16; MS 17 -62; MT \
    36 15; MU -20 58; MV 4 74; MW -16 35; MX 19 -99; MY 3 102; MZ -26 33; NA -23 17; NC -22 166; NE 14 2; NF -29 168; NG 6 3; NI 12 \
    -86; NL 52 5; NO 60 11; NP 28 85; NR -1 167; NU -19 -170; NZ -37 175; OM 24 59; PA 9 -80; PE -12 -77; PF -18 -150; PG -10 147; PH \
    15 121; PK 25 67; PL 52 21; PM 47 -56; PN -25 -130; PR 18 -66; PS 32 34; PT 39 -9; PW 7 134; PY -25 -58; QA 25 52; RE -21 55; RO \
    44 26; RS 45 20; RU 56 38; RW -2 30; SA 25 47; SB -10 160; SC -5 55; SD 16 33; SE 59 18; SG 1 104; SH -16 -6; SI 46 15; SJ 78 16; \
    SK 48 17; SL 8 -13; SM 44 12; SN 15 -17; SO 2 45; SR 6 -55; SS 5 32; ST 0 7; SV 14 -89; SX 18 -63; SY 34 36; SZ -26 31; TC 21 -71; \
    TD 12 15; TF -49 70; TG 6 1; TH 14 101; TJ 39 69; TK -9 -171; TL -9 126; TM 38 58; TN 37 10; TO -21 -175; TR 41 29; TT 11 -62; TV \
    -9 179; TW 25 122; TZ -7 39; UA 50 31; UG 0 32; UM 28 -177; US 40 -97; UY -35 -56; UZ 41 69; VA 42 12; VC 13 -61; VE 10 -67; VG 18 \
    -65; VI 18 -65; VN 11 107; VU -18 168; WF -13 -176; WS -14 -172; XK 43 21; YE 13 45; YT -13 45; ZA -26 28; ZM -15 28; ZW -18 31";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_so_over_the_date_line_and_the_poles_too() {
        let region = |name: &str, latitude, longitude| PlacedRegion { name: name.into(), place: Place { latitude, longitude } };
        let regions =
            [region("eu", 50.0, 9.0), region("us-east", 39.0, -77.0), region("us-west", 45.0, -122.0), region("asia", 35.0, 140.0)];
        let of = |code: &str| nearest(&regions, countries()[code]);
        assert_eq!(of("DE"), ["eu", "us-east", "us-west", "asia"]);
        assert_eq!(of("JP"), ["asia", "us-west", "eu", "us-east"]);
        // Tonga is east of the date line, Fiji west of it.
        assert_eq!((of("TO")[0].as_str(), of("FJ")[0].as_str()), ("asia", "asia"));
        assert_eq!(of("MX")[0], "us-east");
        assert_eq!(countries().len(), COUNTRIES.split(';').count());
    }
}
